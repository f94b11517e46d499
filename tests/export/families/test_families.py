"""Every family's graphs against its Hugging Face module; drafted against plain decoding on each."""

import shutil

import numpy as np
import pytest
import torch
from support.small_models import CONFIGS, make_model
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.export.sources.safetensors_file import read_safetensors
from firp.export.verify.checks import verify
from firp.export.weights.rope import rope_tables
from firp.runtime.bundle.weight_table import rope_names
from firp.runtime.trees.tree import MAX_PASS_ROWS


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
