"""Verification can fail: bundles with one seeded error each, and right ones that are hard to tell
from wrong ones.
"""

import random
import shutil

import numpy as np
import pytest
import torch
from support.mutations import MUTATIONS
from support.small_models import CONFIGS, make_model
from transformers import AutoModelForCausalLM

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.export.verify.checks import verify
from firp.export.verify.reference import Reference, model_rows
from firp.export.verify.rounding import YARDSTICKS
from firp.export.verify.rows import SessionRows, random_sample
from firp.runtime.engine import Engine
from firp.runtime.passes import batch as batch_module


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """Model and bundle of 4 layers, split at 2, without predictors."""
    root = tmp_path_factory.mktemp("healthy")
    model = make_model(root / "model", "llama")
    export_bundle(ExportOptions(model, root / "bundle", prediction_layer=2))
    return model, root / "bundle"


def values(report):
    """Of the checks against float64, by name."""
    stages = ("prefill", "decode", "tree")
    return {check.name: check.value for check in report.checks if check.name.startswith(stages)}


def test_the_healthy_bundle_passes(healthy):
    model, bundle = healthy
    report = verify(bundle, model)
    assert report.passed
    assert len(values(report)) == 6


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_seeded_error_lies_far_beyond_the_limit(mutation, healthy, tmp_path, any_graph):
    model, bundle = healthy
    mutation(shutil.copytree(bundle, tmp_path / "bundle"), random.Random(0))
    report = verify(tmp_path / "bundle", model, check_hashes=False)
    assert max(values(report).values()) > 100 * YARDSTICKS


def test_a_mask_that_shows_the_future_is_caught(healthy, monkeypatch):
    model, bundle = healthy
    real = batch_module.layout

    def leaky(*arguments):
        """One entry above the diagonal is dropped."""
        rows = real(*arguments)
        visible = rows.visible.copy()
        if len(visible) > 3:
            visible[2, 3] = True
        return rows._replace(visible=visible)

    monkeypatch.setattr(batch_module, "layout", leaky)
    report = verify(bundle, model)
    assert values(report)["prefill logits, random tokens"] > 100 * YARDSTICKS


def test_a_graph_error_does_not_hide_behind_float16(tmp_path, any_graph):
    model = make_model(tmp_path / "model", "llama")
    export_bundle(ExportOptions(model, tmp_path / "bundle", prediction_layer=2, dtype="float16"))
    MUTATIONS["a hole in the mask"](tmp_path / "bundle", random.Random(0))
    report = verify(tmp_path / "bundle", model, check_hashes=False)
    assert max(values(report).values()) > 10 * YARDSTICKS


def test_bfloat16_is_verified_in_float32_with_its_own_weights(tmp_path, any_graph):
    """ONNX Runtime has no kernels for it: the same nodes run in float32."""
    model = make_model(tmp_path / "model", "qwen2")
    export_bundle(ExportOptions(model, tmp_path / "bundle", prediction_layer=2, dtype="bfloat16"))
    report = verify(tmp_path / "bundle", model)
    assert report.passed
    assert all(check.name.endswith(", in float32") for check in report.checks)
    assert len(values(report)) == 6
    for mutation in ("a transposed weight", "cosines shifted by a position", "a skipped layer"):
        broken = shutil.copytree(tmp_path / "bundle", tmp_path / mutation)
        MUTATIONS[mutation](broken, random.Random(0))
        report = verify(broken, model, check_hashes=False)
        assert max(values(report).values()) > 2 * YARDSTICKS


def test_massive_activations_are_no_error(tmp_path):
    """A residual stream with values of 20,000, as real LLMs have it: single values differ from
    Hugging Face's by more than any constant limit that would see a damaged weight.
    """
    make_model(tmp_path / "model", "llama")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight *= 1200
    model.save_pretrained(tmp_path / "model")
    export_bundle(ExportOptions(tmp_path / "model", tmp_path / "bundle", prediction_layer=2))
    engine = Engine.load(tmp_path / "bundle")
    sample = random_sample(np.random.default_rng(0).integers(0, 193, 48).tolist(), 193, 256)
    reference = Reference(open_checkpoint(tmp_path / "model"), "float32")
    (theirs,) = model_rows(reference, 2, [sample], torch.float32)
    ours, theirs = SessionRows(engine, 64).run(sample).prefill.hidden_states, theirs.prefill.hidden_states
    assert np.abs(theirs).max() > 20_000
    assert np.max(np.abs(ours - theirs) / np.maximum(1, np.abs(theirs) / 16)) > 1e-4
    assert verify(tmp_path / "bundle", tmp_path / "model", engine=engine).passed


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral_window"])
def test_sharp_models_are_no_error(family, tmp_path, monkeypatch):
    """Random weights so large that rounding alone moves values by more than 1e-4."""
    sharp = CONFIGS[family].to_dict() | {"initializer_range": 0.35, "hidden_size": 96}
    monkeypatch.setitem(CONFIGS, family, type(CONFIGS[family])(**sharp))
    model = make_model(tmp_path / "model", family)
    export_bundle(ExportOptions(model, tmp_path / "bundle"))
    report = verify(tmp_path / "bundle", model)
    assert [check for check in report.checks if not check.passed] == []
