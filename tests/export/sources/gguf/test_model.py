"""GGUF files as checkpoints: the values, the blueprint, and the bundles that are made of them."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.family_models import save_family
from support.gguf_files import WIDE, values_of, write_gguf
from support.small_models import make_model
from transformers import AutoModelForCausalLM

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.gguf.blocks import BLOCKS
from firp.export.sources.open import open_checkpoint
from firp.export.verify.checks import verify
from firp.export.weights.fingerprint import fingerprint
from firp.export.weights.stream import read_chunks
from firp.export.weights.torch_model import torch_model
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckpointError
from firp.runtime.sampling import SamplingParams

FAMILIES = (
    "llama",
    "llama_untied_biases",
    "llama_linear_rope",
    "llama_yarn_rope",
    "mistral_window",
    "qwen2",
    "qwen3",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_says_what_the_directory_says(family, tmp_path):
    model = make_model(tmp_path / "model", family)
    held = write_gguf(tmp_path / "model.gguf", model)
    theirs, ours = open_checkpoint(model), open_checkpoint(tmp_path / "model.gguf")
    assert ours.config == theirs.config
    assert ours.weights == theirs.weights
    found = values_of(ours)
    assert found.keys() == held.keys()
    assert all(np.array_equal(found[name], held[name]) for name in held)


def test_as_many_experts_as_a_router_has_rows(tmp_path):
    model = save_family(tmp_path / "model", "qwen3_moe", mlp_only_layers=[])
    path = tmp_path / "model.gguf"
    write_gguf(path, model, changes={"qwen3moe.expert_count": 2**31})
    with pytest.raises(CheckpointError, match="expert_count.*got 2147483648, expected 5, the rows"):
        open_checkpoint(path)
    write_gguf(path, model, drop=("blk.1.ffn_up_exps.weight",))
    with pytest.raises(CheckpointError, match="5 tensors missing.*got model.layers.1.mlp.experts.0.up_proj"):
        open_checkpoint(path)


def test_a_scale_that_a_family_needs_is_not_guessed(tmp_path):
    model = save_family(tmp_path / "model", "granite")
    write_gguf(tmp_path / "model.gguf", model, changes={"granite.residual_scale": None})
    with pytest.raises(CheckpointError, match="unsupported granite.residual_scale.*got nothing"):
        open_checkpoint(tmp_path / "model.gguf")


def test_a_mistral_file_without_a_window_is_a_llama(tmp_path):
    model = make_model(tmp_path / "model", "mistral")
    write_gguf(tmp_path / "model.gguf", model)
    assert open_checkpoint(tmp_path / "model.gguf").config.architecture == "LlamaForCausalLM"


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *BLOCKS])
def test_every_type_of_tensor_gives_the_values_of_the_package(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("firp.export.weights.stream._CHUNK_BYTES", 100_000)  # several chunks a tensor
    model = make_model(tmp_path / "model", "llama_untied_biases", changes=WIDE)
    held = write_gguf(tmp_path / "model.gguf", model, kind)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    found = values_of(checkpoint)
    assert all(np.array_equal(found[name], held[name]) for name in held)
    storage = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(kind, kind)
    assert checkpoint.tensors["model.layers.1.mlp.up_proj.weight"].storage == storage


def test_chunks_of_blocks_are_small(tmp_path, monkeypatch):
    monkeypatch.setattr("firp.export.weights.stream._CHUNK_BYTES", 4096)
    model = make_model(tmp_path / "model", "qwen2", changes=WIDE)
    write_gguf(tmp_path / "model.gguf", model, "Q4_K")
    record = open_checkpoint(tmp_path / "model.gguf").tensors["model.layers.0.mlp.up_proj.weight"]
    assert max(chunk.nbytes for chunk in read_chunks("up", record)) == 4096


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", "Q4_1"),
        ("llama_untied_biases", "Q6_K"),
        ("llama3_rope", "F16"),
        ("mistral_window", "Q8_0"),
        ("qwen2", "Q5_0"),
        ("qwen3", "BF16"),
    ],
)
def test_a_bundle_of_a_file_is_verified_and_decodes_as_hugging_face_does(family, kind, tmp_path):
    """Against the original directory with the file's values in it, which firp's reader never sees."""
    model = make_model(tmp_path / "model", family, changes=WIDE)
    held = write_gguf(tmp_path / "model.gguf", model, kind)
    export_bundle(ExportOptions(tmp_path / "model.gguf", tmp_path / "bundle"))
    assert verify(tmp_path / "bundle", tmp_path / "model.gguf").passed
    save_file({name: torch.tensor(values) for name, values in held.items()}, model / "model.safetensors")
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    engine = Engine.load(tmp_path / "bundle")
    prompt = [5, 60, 11, 190, 42]
    ids = torch.tensor([prompt])
    expected = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=None
    )
    found = engine.generate(prompt, SamplingParams(max_new_tokens=24)).token_ids
    assert found == expected[0, len(prompt) :].tolist()


def test_the_oracle_of_a_file_is_the_model_of_the_directory(tmp_path):
    model = make_model(tmp_path / "model", "llama3_rope")
    write_gguf(tmp_path / "model.gguf", model)
    ours = torch_model(open_checkpoint(tmp_path / "model.gguf"), torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.arange(2, 62).reshape(2, 30)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_file_and_the_directory_with_its_values_have_one_fingerprint(tmp_path):
    model = make_model(tmp_path / "model", "llama")
    write_gguf(tmp_path / "model.gguf", model)
    assert fingerprint(open_checkpoint(tmp_path / "model.gguf")) == fingerprint(open_checkpoint(model))


def test_a_fingerprint_tells_files_apart(tmp_path):
    model = make_model(tmp_path / "model", "qwen2", changes=WIDE)
    prints = set()
    for kind in ("F32", "F16", "Q4_0", "Q4_1"):
        write_gguf(tmp_path / "model.gguf", model, kind)
        prints.add(fingerprint(open_checkpoint(tmp_path / "model.gguf")))
    assert len(prints) == 4


def test_a_split_file_is_one_model(tmp_path):
    model = make_model(tmp_path / "model", "qwen2")
    held = write_gguf(tmp_path / "split.gguf", model, split_bytes=150_000)
    parts = sorted(tmp_path.glob("split-*.gguf"))
    assert len(parts) > 2
    for part in (parts[0], parts[-1]):  # whichever is named
        found = values_of(open_checkpoint(part))
        assert found.keys() == held.keys()
        assert all(np.array_equal(found[name], held[name]) for name in held)


def test_scales_that_are_not_finite_are_named(tmp_path):
    model = make_model(tmp_path / "model", "qwen2", changes=WIDE)
    write_gguf(tmp_path / "model.gguf", model, "Q8_0")
    record = open_checkpoint(tmp_path / "model.gguf").tensors["model.layers.2.mlp.up_proj.weight"]
    content = bytearray((tmp_path / "model.gguf").read_bytes())
    content[record.offset : record.offset + 2] = np.float16(np.inf).tobytes()
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.up_proj\.weight holds NaN or infinity"):
        export_bundle(ExportOptions(tmp_path / "model.gguf", tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_is_verified_against_what_holds_its_values_alone(tmp_path):
    model = make_model(tmp_path / "model", "qwen2", changes=WIDE)
    for kind in ("F32", "Q4_0"):
        write_gguf(tmp_path / f"{kind}.gguf", model, kind)
        export_bundle(ExportOptions(tmp_path / f"{kind}.gguf", tmp_path / kind))
    assert verify(tmp_path / "F32", model).passed
    with pytest.raises(CheckpointError, match="made from another model.*'.*model'.*'Q4_0.gguf'"):
        verify(tmp_path / "Q4_0", model)
