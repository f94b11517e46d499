"""Training of predictors: the pseudo rows it trains are those that the graphs run; seeds, held-out split, bad data."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import make_model, make_predictors
from transformers import AutoModelForCausalLM

from firp.calib.dataset import load_dataset
from firp.calib.frozen_model import FrozenModel
from firp.calib.options import TrainOptions
from firp.calib.predictors import Predictors, calibrate
from firp.export.bundle_writer import ExportOptions, export_bundle
from firp.export.checkpoint import open_checkpoint
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckpointError, FirpError
from firp.runtime.text import load_tokenizer
from firp.runtime.tree import DraftTree


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral_window", "llama3_rope"])
def test_training_and_graphs_agree_on_pseudo_rows(family, tmp_path):
    """The logits of pseudo rows after a chain: torch, as trained, against ONNX, as run."""
    model_dir = make_model(tmp_path / "model", family)
    export_bundle(ExportOptions(model_dir, tmp_path / "bundle", make_predictors(tmp_path / "predictors", model_dir)))
    engine, checkpoint = Engine.load(tmp_path / "bundle"), open_checkpoint(model_dir)
    tokens = np.random.default_rng(0).integers(2, 190, 24).tolist()
    sources = [3, 11, 23]
    chain = DraftTree(tokens, list(range(-1, 23)), list(range(24)), [1.0] * 24)
    result = engine.session(64, rows=64).forward(chain, sources)

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    frozen = FrozenModel(model, 2, checkpoint.config.sliding_window)
    predictors = Predictors(3, checkpoint.config.hidden_size)
    predictors.load_state_dict({"weight": load_file(tmp_path / "predictors" / "predictors.safetensors")["predictors.weight"]})
    real = frozen.real_rows(torch.tensor([tokens]))
    with torch.no_grad():
        pseudo = predictors(real.hidden[:, sources])
        logits = frozen.logits(frozen.pseudo_rows(pseudo, real, torch.tensor([sources])))  # [1, 3, K, V]
    np.testing.assert_allclose(result.hidden_states, real.hidden[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(result.logits[24:], logits.reshape(9, -1).numpy(), atol=1e-4)
    np.testing.assert_allclose(result.logits[:24], frozen.logits(real.final)[0].numpy(), atol=1e-4)


@pytest.fixture
def text(tmp_path, pytestconfig):
    """A few thousand tokens that any machine has: this project's own sources."""
    file = tmp_path / "text.txt"
    file.write_text("".join(path.read_text() for path in sorted((pytestconfig.rootpath / "runtime").glob("*.py"))))
    return file


OPTIONS = TrainOptions(minutes=None, steps=30, window=64, batch=2, anchors=16)


def test_training_learns_and_is_reproducible(text, tmp_path, pytestconfig):
    demo = pytestconfig.rootpath / "tests" / "demo_model"
    losses = []
    info = calibrate(demo, tmp_path / "a", [text], OPTIONS, lambda progress: losses.append(progress.loss))
    calibrate(demo, tmp_path / "b", [text], OPTIONS)
    calibrate(demo, tmp_path / "c", [text], TrainOptions(**{**vars(OPTIONS), "seed": 1}))
    assert sum(losses[-1]) < sum(losses[0]) - 0.5
    a, b, c = (load_file(tmp_path / x / "predictors.safetensors")["predictors.weight"] for x in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.shape == (3, 256, 256)
    written = json.loads((tmp_path / "a" / "predictors.json").read_text())
    assert written["held_out"] == json.loads(json.dumps(asdict(info.held_out))) and written["training"]["steps"] == 30
    assert info.model_fingerprint == open_checkpoint(demo).fingerprint()
    for shares in (info.held_out.top1, info.held_out.top5):
        assert len(shares) == 3 and all(0 <= share <= 1 for share in shares)


def test_held_out_windows_are_the_end_and_never_trained_on(text, pytestconfig):
    tokenizer = load_tokenizer(pytestconfig.rootpath / "tests" / "demo_model" / "tokenizer.json")
    dataset = load_dataset([text, text], tokenizer, window=64, separator=0)
    ids = np.array(([*tokenizer.encode(text.read_text()).ids, 0]) * 2)
    windows = np.concatenate([dataset.training, dataset.held_out])
    assert (windows.ravel() == ids[: windows.size]).all() and len(ids) - windows.size < 64
    assert len(dataset.held_out) == round(len(windows) * 0.05)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too little calibration data.*at least 128"),
        (b"short", "too little calibration data"),
        (b"\xff\xfe" * 400, "not text.*byte 0"),
        (None, "cannot read calibration data"),
    ],
)
def test_bad_data_is_refused_and_nothing_is_written(content, message, tmp_path, pytestconfig):
    data = tmp_path / "data.txt"
    if content is not None:
        data.write_bytes(content)
    with pytest.raises(FirpError, match=message):
        calibrate(pytestconfig.rootpath / "tests" / "demo_model", tmp_path / "out", [data], OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == (["data.txt"] if content is not None else [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_layer": 0}, "prediction layer out of range.*0.*1 to 7"),
        ({"prediction_layer": 8}, "prediction layer out of range"),
        ({"num_predictors": 0}, "bad number of predictors"),
        ({"steps": 0}, "nothing to train"),
        ({"steps": None, "minutes": -1.0}, "nothing to train"),
    ],
)
def test_bad_options_are_refused(changes, message, text, tmp_path, pytestconfig):
    with pytest.raises(FirpError, match=message):
        calibrate(
            pytestconfig.rootpath / "tests" / "demo_model", tmp_path / "out", [text], TrainOptions(**{**vars(OPTIONS), **changes})
        )


def test_an_existing_directory_is_not_overwritten(text, tmp_path, pytestconfig):
    (tmp_path / "out").mkdir()
    with pytest.raises(FirpError, match="output exists"):
        calibrate(pytestconfig.rootpath / "tests" / "demo_model", tmp_path / "out", [text], OPTIONS)


class TestPredictorDirectory:
    @pytest.fixture
    def pair(self, tmp_path):
        model = make_model(tmp_path / "model", "llama")
        return model, make_predictors(tmp_path / "predictors", model)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"hidden_size": 128}, "another hidden size.*128.*64"),
            ({"prediction_layer": 4}, "a layer that the model lacks"),
            ({"num_predictors": 2}, "does not match predictors.json"),
            ({"model_fingerprint": "0" * 64}, "predictors of another model"),
            ({"format_version": 2}, "unsupported predictors"),
            ({"method": "medusa"}, "unsupported predictors.*medusa"),
            ({"shape": 1}, "unknown key.*shape"),
        ],
    )
    def test_each_mismatch_is_refused(self, pair, change, message, tmp_path):
        model, predictors = pair
        info = json.loads((predictors / "predictors.json").read_text())
        (predictors / "predictors.json").write_text(json.dumps(info | change))
        with pytest.raises(CheckpointError, match=message):
            export_bundle(ExportOptions(model, tmp_path / "bundle", predictors))
        assert not (tmp_path / "bundle").exists()

    def test_layer_that_contradicts_the_option(self, pair, tmp_path):
        with pytest.raises(CheckpointError, match=r"predictors for another layer.*prediction.layer 3.*expected 2"):
            export_bundle(ExportOptions(pair[0], tmp_path / "bundle", pair[1], prediction_layer=3))

    def test_missing_files(self, pair, tmp_path):
        (pair[1] / "predictors.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"not a predictor directory.*without predictors\.safetensors"):
            export_bundle(ExportOptions(pair[0], tmp_path / "bundle", pair[1]))
