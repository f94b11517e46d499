"""The pseudo rows that training sees are those that the graphs run."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.family_models import FALCON_RW, save_family
from support.small_models import CONFIGS, make_model, make_predictors
from transformers import AutoModelForCausalLM

from firp.calib.training.frozen_model import FrozenModel
from firp.calib.training.heads import FirpPredictors
from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.export.weights.torch_model import torch_model
from firp.runtime.engine import Engine
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.trees.tree import chain


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral_window", "llama3_rope", "youtu"])
def test_training_and_graphs_agree_on_pseudo_rows(family, tmp_path):
    """The logits of pseudo rows after a chain: torch, as trained, against ONNX, as run."""
    if family in CONFIGS:
        model_dir = make_model(tmp_path / "model", family)
    else:
        model_dir = save_family(tmp_path / "model", family, vocab_size=193)
    export_bundle(
        ExportOptions(model_dir, tmp_path / "bundle", make_predictors(tmp_path / "predictors", model_dir))
    )
    engine, checkpoint = Engine.load(tmp_path / "bundle"), open_checkpoint(model_dir)
    tokens = np.random.default_rng(0).integers(2, 190, 24).tolist()
    sources = (3, 11, 23)
    session = engine.session(64, rows=64)
    result = session.forward(PassPlan(chain(tokens), sources, offsets=3))

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    frozen = FrozenModel(model, checkpoint, 2)
    predictors = FirpPredictors(3, checkpoint.config.hidden_size)
    predictors.load_state_dict(
        {"weight": load_file(tmp_path / "predictors" / "predictors.safetensors")["predictors.weight"]}
    )
    real = frozen.real_rows(torch.tensor([tokens]))
    with torch.no_grad():
        logits = predictors(frozen, real, torch.tensor([sources]))  # [1, 3, K, V]
    np.testing.assert_allclose(session.hidden_states(24), real.hidden[0].numpy(), atol=1e-4)
    logprobs = logits.log_softmax(-1).reshape(9, -1).numpy()
    top_ids, top_logprobs = result.guesses
    np.testing.assert_allclose(top_logprobs, np.take_along_axis(logprobs, top_ids, 1), atol=1e-4)
    np.testing.assert_allclose(np.sort(logprobs)[:, -top_ids.shape[1] :][:, ::-1], top_logprobs, atol=1e-4)
    np.testing.assert_allclose(result.logits, frozen.logits(real.final)[0].numpy(), atol=1e-4)

    # the draft pass of the last row says the same as its pseudo rows that rode along
    session.commit(range(24))
    for offsets in (1, 3):
        guesses = session.draft(offsets)
        np.testing.assert_array_equal(guesses.top_ids, top_ids[6 : 6 + offsets])
        np.testing.assert_allclose(guesses.top_logprobs, top_logprobs[6 : 6 + offsets], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gemma3_text", {}),
        ("gpt2", {}),
        ("bloom", {}),
        ("codegen", {}),
        ("cohere", {}),
        ("olmo2", {}),
        ("falcon", {}),
        ("falcon", FALCON_RW),
        ("gpt_oss", {}),
        ("phimoe", {}),
        ("afmoe", {}),
        ("dbrx", {}),
        ("minicpm3", {}),
    ],
)
def test_the_layers_in_torch_are_those_of_the_model(model_type, changes, tmp_path):
    checkpoint = open_checkpoint(save_family(tmp_path, model_type, **changes))
    model = torch_model(checkpoint, torch.float32)
    ids = torch.randint(0, 60, (2, 24), generator=torch.Generator().manual_seed(0))
    frozen = FrozenModel(model, checkpoint, 2)
    logits = frozen.logits(frozen.real_rows(ids).final)
    torch.testing.assert_close(logits, model(ids).logits, atol=1e-4, rtol=1e-4)
