"""Calibration end to end: it learns, repeats itself, resumes exactly, and refuses what it cannot
use without leaving anything.
"""

import dataclasses
import json
import threading

import pytest
import torch
from safetensors.torch import load_file
from support.small_models import make_model
from transformers import AutoModelForCausalLM

from firp.calib.calibrate.request import CalibrationRequest
from firp.calib.calibrate.run import calibrate
from firp.calib.replay import evaluation
from firp.calib.report import report as report_module
from firp.calib.report.pictures import draw_pictures
from firp.calib.text.continuations import Beginnings, RuntimeWriter, TransformersWriter
from firp.calib.training.options import TrainOptions
from firp.calib.training.trainer import Trainer
from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.export.weights.fingerprint import fingerprint
from firp.runtime.bundle.calibration import LatencyTable
from firp.runtime.bundle.format import load_bundle
from firp.runtime.errors import FirpError

OPTIONS = TrainOptions(minutes=None, steps=12, window=48, batch=2, anchors=16, correction_rank=8)


@pytest.fixture(scope="module", autouse=True)
def short_report():
    """Few and short held-out sequences, and pictures only where a test asks for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "SEQUENCES", 2)
        patch.setattr(evaluation, "LENGTH", 24)
        patch.setattr(report_module, "draw_pictures", lambda findings: {})
        yield


@pytest.fixture(scope="module")
def demo(pytestconfig):
    return pytestconfig.rootpath / "tests" / "demo_model"


@pytest.fixture(scope="module")
def text(tmp_path_factory, pytestconfig):
    """A few thousand tokens that any machine has: this project's own sources."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(
        "".join(path.read_text() for path in sorted((pytestconfig.rootpath / "runtime").rglob("*.py"))[:8])
    )
    return file


@pytest.fixture(scope="module")
def whole(demo, text, tmp_path_factory):
    """What a run that nothing disturbs trains with OPTIONS."""
    folder = tmp_path_factory.mktemp("whole") / "a"
    calibrate(request_for(demo, folder, text))
    return weights_of(folder)


# A machine that need not be measured again for every run.
LATENCY = LatencyTable(
    device="a machine",
    prediction_layer=6,
    num_hidden_layers=8,
    contexts=(256,),
    rows=(1, 4, 16, 64),
    lower_ms=((1.3, 1.6, 3.0, 9.0),),
    upper_ms=((0.7, 0.9, 1.8, 5.5),),
    predictors_ms=0.1,
    plain_outside_ms=0.1,
    drafted_outside_ms=0.3,
)


def request_for(demo, output, text, latency=LATENCY, **options):
    options = dataclasses.replace(OPTIONS, **options)
    return CalibrationRequest(demo, output, (text,), options=options, latency=latency)


def test_it_learns_and_its_directory_makes_a_bundle(demo, text, tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "draw_pictures", draw_pictures)
    seen = []
    info = calibrate(request_for(demo, tmp_path / "a", text, latency=None, steps=40), seen.append)
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    curve = report["methods"][0]["curve"]
    assert sum(curve[-1][1]) < sum(curve[0][1]) - 0.5
    assert curve[-1][0] == 40
    assert info.training["steps"] == 40
    assert info.model_fingerprint == fingerprint(open_checkpoint(demo))
    for shares in (info.held_out.top1, info.held_out.top10):
        assert len(shares) == 3
        assert all(0 <= share <= 1 for share in shares)
    assert [event.training.step for event in seen if event.training] == list(range(1, 41))
    assert all(event.stage.startswith("training firp at layer 6: step") for event in seen if event.training)
    assert report["choice"]["speedup"] == pytest.approx(
        max(speedup for _, speedup in report["speedups"]), abs=2e-3
    )
    assert (tmp_path / "a" / "report.html").is_file()
    assert (tmp_path / "a" / "speedup.png").is_file()
    assert not list(tmp_path.glob("*.unfinished"))
    export_bundle(ExportOptions(demo, tmp_path / "bundle", tmp_path / "a"))
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.correction.previous.shape == (4096, 8)
    assert len(bundle.calibration.candidates) > 50


def weights_of(folder):
    return load_file(folder / "predictors.safetensors") | load_file(folder / "path_correction.safetensors")


def test_the_seed_decides_and_a_resumed_run_ends_like_one_that_was_not_interrupted(
    demo, text, whole, tmp_path
):
    cancel = threading.Event()

    def stop_at_step_5(event):
        if event.training and event.training.step == 5:
            cancel.set()

    with pytest.raises(FirpError, match=r"interrupted.*step 5, .*kept in .*\.unfinished.*--resume"):
        calibrate(request_for(demo, tmp_path / "parts", text), stop_at_step_5, cancel)
    assert not (tmp_path / "parts").exists()
    assert (tmp_path / "parts.unfinished").is_file()
    with pytest.raises(FirpError, match="an unfinished calibration is there.*add --resume"):
        calibrate(request_for(demo, tmp_path / "parts", text))
    with pytest.raises(FirpError, match="was another one.*different seed"):
        calibrate(dataclasses.replace(request_for(demo, tmp_path / "parts", text, seed=1), resume=True))
    calibrate(dataclasses.replace(request_for(demo, tmp_path / "parts", text), resume=True))
    calibrate(request_for(demo, tmp_path / "other seed", text, seed=1))
    parts, other = (weights_of(tmp_path / name) for name in ("parts", "other seed"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not torch.equal(whole["predictors.weight"], other["predictors.weight"])
    assert not list(tmp_path.glob("*.unfinished"))


def test_baselines_and_sweep_share_the_budget(demo, text, tmp_path):
    request = request_for(demo, tmp_path / "a", text, steps=24, prediction_layer="auto", baselines=True)
    info = calibrate(request)
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert [method["method"] for method in report["methods"]] == [
        "firp",
        "medusa",
        "early exit",
        "prompt lookup",
    ]
    # a quarter of the steps went to the sweep
    assert {method["curve"][-1][0] for method in report["methods"][:3]} == {18}
    best = max(report["layers"], key=lambda layer: layer["speedup"])["prediction_layer"]
    assert info.prediction_layer == best
    assert report["prediction_layer"] == best
    assert [layer["prediction_layer"] for layer in report["layers"]] == [2, 3, 4, 5, 6, 7]


def test_the_model_writes_its_own_data(demo, tmp_path):
    options = dataclasses.replace(OPTIONS, own_tokens=3000)
    prompts = ("def add(a, b):", [5, 6, 7])
    info = calibrate(
        CalibrationRequest(demo, tmp_path / "a", prompts=prompts, options=options, latency=LATENCY)
    )
    assert info.training["prompts"] == 2
    assert 2500 <= info.training["tokens"] < 4500


def test_bfloat16_and_accumulation(demo, text, tmp_path):
    """In few passes: without instructions for bfloat16 a CPU takes ten times as long."""
    (tmp_path / "short.txt").write_text(text.read_text()[:4000])
    options = {"precision": "bfloat16", "accumulate": 2, "steps": 2, "anchors": 8}
    calibrate(request_for(demo, tmp_path / "a", tmp_path / "short.txt", **options))
    weight = weights_of(tmp_path / "a")["predictors.weight"]
    assert weight.dtype == torch.bfloat16
    assert not torch.equal(weight[0], torch.eye(256, dtype=torch.bfloat16))


@pytest.mark.parametrize("failure", ["divergence", "interrupt"])
def test_a_step_that_fails_did_not_happen(failure, demo, text, whole, tmp_path, monkeypatch):
    """NaN, or Ctrl-C twice, in the middle of a step: what is kept is the state before it, and goes
    on as if nothing had been.
    """
    original = Trainer.losses

    def failing(self, input_ids):
        losses, table_losses = original(self, input_ids)
        if self.step == 4 and failure == "interrupt":
            raise KeyboardInterrupt
        return (losses * float("nan") if self.step == 4 else losses), table_losses

    monkeypatch.setattr(Trainer, "losses", failing)
    with pytest.raises(KeyboardInterrupt if failure == "interrupt" else FirpError):
        calibrate(request_for(demo, tmp_path / "a", text))
    assert not (tmp_path / "a").exists()
    monkeypatch.undo()
    calibrate(dataclasses.replace(request_for(demo, tmp_path / "a", text), resume=True))
    parts = weights_of(tmp_path / "a")
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_divergence_is_told(demo, text, tmp_path, monkeypatch):
    original = Trainer.losses

    def failing(self, input_ids):
        losses, table_losses = original(self, input_ids)
        return losses, (table_losses * float("inf") if self.step == 4 else table_losses)

    monkeypatch.setattr(Trainer, "losses", failing)
    with pytest.raises(FirpError, match=r"training diverged.*at step 4.*lower --learning-rate"):
        calibrate(request_for(demo, tmp_path / "a", text))
    saved = torch.load(tmp_path / "a.unfinished", weights_only=True)["stages"]["firp, layer 6, 12 steps"]
    assert saved["step"] == 4
    assert torch.isfinite(saved["heads"]["weight"]).all()
    assert not (tmp_path / "a").exists()


def test_both_writers_write_what_the_runtime_would_decode(demo):
    """The model's generation_config may ask for penalties and the like; the runtime knows none."""
    model = AutoModelForCausalLM.from_pretrained(demo)
    model.generation_config.repetition_penalty = 1.5
    prompts = [[5, 6, 7], [300, 9]]
    theirs = TransformersWriter(model)(Beginnings(prompts, 20, 0.0, 0, ()))
    ours = RuntimeWriter(demo)(Beginnings(prompts, 20, 0.0, 0, ()))
    assert [text.tokens.tolist() for text in ours] == [text.tokens.tolist() for text in theirs]
    assert [text.prompt_tokens for text in ours] == [3, 2]
    assert all(len(text.tokens) == text.prompt_tokens + 20 for text in ours)


def test_sampled_text_ends_where_the_model_ends_it_and_follows_its_seed(demo):
    write = RuntimeWriter(demo)
    (whole,) = write(Beginnings([[5, 6, 7]], 20, 0.8, 1, ()))
    end = int(whole.tokens[10])
    (cut,) = write(Beginnings([[5, 6, 7]], 20, 0.8, 1, (end,)))
    length = whole.tokens.tolist().index(end, 3) + 1
    assert cut.tokens.tolist() == whole.tokens[:length].tolist()
    assert (write(Beginnings([[5, 6, 7]], 20, 0.8, 2, ()))[0].tokens != whole.tokens).any()


def test_bad_prompts_and_latency_tables_are_refused(demo, text, tmp_path):
    with pytest.raises(FirpError, match="token id out of range.*0 to 4095"):
        calibrate(CalibrationRequest(demo, tmp_path / "a", prompts=([5000], [1]), options=OPTIONS))
    with pytest.raises(FirpError, match="lone surrogate"):
        calibrate(CalibrationRequest(demo, tmp_path / "a", prompts=("\ud83d", "x"), options=OPTIONS))
    table = LatencyTable("x", 6, 32, (256,), (1, 2), ((1.0, 1.0),), ((1.0, 1.0),), 0.1, 0.1, 0.1)
    with pytest.raises(FirpError, match="latency table of another model.*32 layers.*expected 8"):
        calibrate(dataclasses.replace(request_for(demo, tmp_path / "a", text), latency=table))
    assert list(tmp_path.iterdir()) == []


def test_out_of_memory_says_what_to_lower(demo, text, tmp_path, monkeypatch):
    def failing(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "losses", failing)
    with pytest.raises(FirpError, match="out of memory on cpu.*--batch 2 --anchors 16 --window 48"):
        calibrate(request_for(demo, tmp_path / "a", text))
    monkeypatch.setattr("firp.calib.calibrate.request.available_memory", lambda device: 10 * 2**20)
    with pytest.raises(
        FirpError, match="not enough memory on cpu.*0.01 GiB free.*GiB = model 0.03 [+] predictors"
    ):
        calibrate(request_for(demo, tmp_path / "b", text))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_layer": 0}, "prediction layer out of range.*0.*1 to 7"),
        ({"prediction_layer": 8}, "prediction layer out of range"),
        ({"prediction_layer": "deep"}, "bad prediction layer"),
        ({"num_predictors": 0}, "bad num predictors.*got 0, expected a whole number, 1 to 16"),
        ({"steps": 0}, "bad training budget"),
        ({"steps": None, "minutes": -1.0}, "bad minutes.*got -1.0"),
        ({"steps": None, "minutes": float("nan")}, "bad minutes.*got nan"),
        ({"window": 4}, "bad window"),
        ({"batch": 0}, "bad batch"),
        ({"learning_rate": 1e300}, "bad learning rate"),
        ({"own_tokens": 0}, "bad own tokens"),
        ({"device": "cuda:7"}, "cannot use the device.*cuda:7"),
        ({"device": "toaster"}, "cannot use the device.*toaster"),
        ({"device": "meta"}, "cannot use the device.*neither cpu nor cuda"),
    ],
)
def test_bad_options_are_refused(changes, message, demo, text, tmp_path):
    with pytest.raises(FirpError, match=message):
        calibrate(request_for(demo, tmp_path / "out", text, **changes))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_nothing_else_resumed(demo, text, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FirpError, match="output exists"):
        calibrate(request_for(demo, tmp_path / "out", text))
    with pytest.raises(FirpError, match="nothing to resume"):
        calibrate(dataclasses.replace(request_for(demo, tmp_path / "new", text), resume=True))
    (tmp_path / "new.unfinished").write_bytes(b"PK not a checkpoint")
    with pytest.raises(FirpError, match="unreadable checkpoint"):
        calibrate(dataclasses.replace(request_for(demo, tmp_path / "new", text), resume=True))


def test_a_second_run_to_the_same_output_is_refused_at_once(demo, text, tmp_path):
    refused = []

    def meanwhile(event):
        if event.training and event.training.step == 3:
            with pytest.raises(FirpError, match="an unfinished calibration is there") as error:
                calibrate(request_for(demo, tmp_path / "a", text))
            refused.append(error)

    calibrate(request_for(demo, tmp_path / "a", text), meanwhile)
    assert len(refused) == 1
    assert (tmp_path / "a" / "predictors.json").is_file()


def test_a_model_without_tokenizer_and_no_data(text, demo, tmp_path):
    with pytest.raises(FirpError, match="the model has no tokenizer"):
        calibrate(request_for(make_model(tmp_path / "model", "llama"), tmp_path / "out", text))
    with pytest.raises(FirpError, match="nothing to calibrate on"):
        calibrate(CalibrationRequest(demo, tmp_path / "out"))
