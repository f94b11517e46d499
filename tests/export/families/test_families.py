"""Every family's graphs against its Hugging Face module; drafted against plain decoding on each."""

import shutil

import numpy as np
import pytest
import torch
from support.family_models import save_family
from support.small_models import CONFIGS, make_model
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.export.sources.safetensors_file import read_safetensors
from firp.export.verify.checks import verify
from firp.export.weights.rope import rope_tables
from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.weight_table import rope_names
from firp.runtime.errors import CheckpointError
from firp.runtime.trees.tree_config import MAX_PASS_ROWS


@pytest.mark.parametrize("family", CONFIGS)
def test_graphs_say_what_the_model_says(family, family_bundle):
    model, bundle = family_bundle(family)
    report = verify(bundle, model)
    names = {check.name for check in report.checks}
    assert {
        "prefill logits, random tokens",
        "decode logits, random tokens",
        "tree logits, random tokens",
    } <= names
    assert [check for check in report.checks if not check.passed] == []
    assert report.near_ties == []


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_float16_graphs_follow_the_model(family, tmp_path):
    model = make_model(tmp_path / "model", family)
    export_bundle(ExportOptions(model, tmp_path / "bundle", dtype="float16"))
    report = verify(tmp_path / "bundle", model)
    assert report.passed, report.checks


def test_experts_run_in_half_types(tmp_path):
    """ONNX Runtime has no kernel that adds float16 where it scatters."""
    model = save_family(tmp_path / "model", "mixtral")
    export_bundle(ExportOptions(model, tmp_path / "bundle", dtype="float16"))
    report = verify(tmp_path / "bundle", model)
    assert report.passed, report.checks


def test_a_damaged_weight_fails_verification(family_bundle, tmp_path):
    """The checks can fail: the bundle of a model whose weights were changed afterwards does not
    pass.
    """
    model, bundle = family_bundle("llama")
    shutil.copytree(model, tmp_path / "model")
    shutil.copytree(bundle, tmp_path / "bundle")
    record = read_safetensors(tmp_path / "bundle" / "model.safetensors")["layers.1.down_proj.weight"]
    with record.file.open("r+b") as file:
        file.seek(record.offset)
        file.write(np.ones(16, np.float32).tobytes())
    report = verify(tmp_path / "bundle", tmp_path / "model", check_hashes=False)
    assert not report.passed


@pytest.mark.parametrize("family", ["llama", "llama3_rope", "llama_linear_rope", "llama_yarn_rope"])
def test_rope_tables_are_those_of_the_model(family, tmp_path):
    checkpoint = open_checkpoint(make_model(tmp_path / "model", family))
    tables = rope_tables(checkpoint.config)
    cos, sin = (tables[name] for name in rope_names("default"))
    positions = torch.arange(len(cos))[None]
    expected = LlamaRotaryEmbedding(CONFIGS[family])(torch.zeros(1), positions)
    half = checkpoint.config.attention.head_dim // 2
    assert len(cos) == MAX_PASS_ROWS
    assert len(cos) > checkpoint.config.max_position_embeddings
    np.testing.assert_array_equal(cos, expected[0][0, :, :half].numpy())
    np.testing.assert_array_equal(sin, expected[1][0, :, :half].numpy())


def test_a_shorter_context_is_the_same_model(tmp_path):
    model = make_model(tmp_path / "model", "llama")
    export_bundle(ExportOptions(model, tmp_path / "bundle", max_context=64))
    assert load_bundle(tmp_path / "bundle").manifest.model.max_position_embeddings == 64
    assert verify(tmp_path / "bundle", model).passed


@pytest.mark.parametrize(
    ("tokens", "message"), [(8, "context out of range.*16 to 256"), (257, "context out of range.*got 257")]
)
def test_a_context_that_no_model_has_is_refused(tokens, message, tmp_path):
    model = make_model(tmp_path / "model", "llama")
    with pytest.raises(CheckpointError, match=message):
        export_bundle(ExportOptions(model, tmp_path / "bundle", max_context=tokens))
    assert not (tmp_path / "bundle").exists()


def test_a_table_of_learned_positions_is_not_cut(tmp_path):
    checkpoint = open_checkpoint(save_family(tmp_path, "gpt2"))
    with pytest.raises(CheckpointError, match="positions of this model are weights"):
        checkpoint.with_context(32)
