"""Quantized bundles: what is stored, what runs them, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.family_models import save_family
from support.gguf_files import WIDE, write_gguf
from support.mutations import edit_weight
from support.small_models import make_model, make_predictors

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.quantize import decision
from firp.export.quantize.kept import kept_integers
from firp.export.quantize.stored import StoredWeights
from firp.export.sources.open import open_checkpoint
from firp.export.tensorrt.build import BuildOptions, build_engines
from firp.export.verify.checks import verify
from firp.runtime.bundle.format import load_bundle, read_manifest, write_manifest
from firp.runtime.bundle.precision import (
    BLOCKS4,
    BLOCKS8,
    OFFSET_BLOCKS4,
    ROW_FORMATS,
    ROWS,
    refuse_quantized,
)
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckFailedError, CheckpointError, FirpError
from firp.runtime.sampling import SamplingParams

ANY_LOSS = 1e9


def quantized(root, model, method, **options):
    bundle = root / f"bundle-{method}"
    export_bundle(ExportOptions(model, bundle, quantize=method, quality_limit=ANY_LOSS, **options))
    return bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("quantized") / "model", "llama_untied_biases")


@pytest.fixture(scope="module")
def bundle(model):
    predictors = make_predictors(model.parent / "predictors", model)
    return quantized(model.parent, model, "int8", predictors=predictors)


def formats(bundle):
    linears = load_bundle(bundle).manifest.quantization.linears
    return {linear.format for linear in linears.values()}


def test_a_bundle_is_a_third_of_its_size_and_decodes(bundle, model):
    plain = sum(tensor.numel() for tensor in load_file(model / "model.safetensors").values()) * 4
    assert load_bundle(bundle).manifest.files["model.safetensors"].size < plain
    engine = Engine.load(bundle)
    run = engine.generate([5, 9, 17, 4], SamplingParams(max_new_tokens=12))
    assert len(run.token_ids) == 12


def test_the_manifest_says_what_every_matrix_is(bundle):
    found = load_bundle(bundle).manifest.quantization
    assert found.method == "int8"
    assert found.calibration_tokens == 512
    assert len(found.linears) == 4 * 4 + 2
    assert formats(bundle) <= set(ROW_FORMATS)
    assert 0 < found.linears["layers.0.qkv_proj"].rows_error < 0.05


def test_quality_is_measured(bundle):
    quality = load_bundle(bundle).manifest.quantization.quality
    assert quality.tokens == 510
    assert 0 < quality.kl < 0.2
    assert 0.8 < quality.top1 <= 1
    assert quality.perplexity == pytest.approx(quality.float_perplexity * np.exp(quality.kl), rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "form"),
    [("Q8_0", BLOCKS8), ("Q4_0", BLOCKS4), ("Q4_1", OFFSET_BLOCKS4), ("Q4_K", OFFSET_BLOCKS4)],
)
def test_blocks_of_a_gguf_file_are_kept_bit_for_bit(kind, form, tmp_path):
    source = make_model(tmp_path / "model", "llama", changes=WIDE)
    held = write_gguf(tmp_path / "model.gguf", source, kind)
    bundle = quantized(tmp_path, tmp_path / "model.gguf", "int4")
    loaded = load_bundle(bundle).manifest
    assert formats(bundle) == {ROWS, form}
    assert all(each.kept == (each.format == form) for each in loaded.quantization.linears.values())
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    stored = StoredWeights(bundle, checkpoint, loaded.quantization)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"):
        source = f"model.layers.2.{name}.weight"
        off = np.abs(stored.tensor(source).float().numpy() - held[source])
        assert form == OFFSET_BLOCKS4 or not off.any()
    if form == OFFSET_BLOCKS4:  # all but the offset, whose two digits tell 225 steps of what offsets reach
        weight = next(each for each in checkpoint.weights if each.name == "layers.2.down_proj.weight")
        offset = kept_integers(weight, checkpoint.tensors).offset
        reach = np.maximum(offset.max(0), 0) - np.minimum(offset.min(0), 0)
        assert 0.3 < (off.max(1) / reach).max() * 225 < 0.51


def test_offsets_of_blocks_are_verified(tmp_path):
    source = make_model(tmp_path / "model", "llama", changes=WIDE)
    file = tmp_path / "model.gguf"
    write_gguf(file, source, "Q4_1")
    bundle = quantized(tmp_path, file, "int4")
    assert verify(bundle, file).passed
    edit_weight(bundle, "layers.1.down_proj.scale", digits_of_others)
    failed = {check.name for check in verify(bundle, file, check_hashes=False).checks if not check.passed}
    assert "steps from the model's weights, layers.1.down_proj" in failed


def digits_of_others(scales):
    """Scales [10, out] of 8 blocks and two digits: these are those of other outputs."""
    return np.concatenate((scales[:8], scales[8:, ::-1]))


def test_experts_keep_blocks_with_offsets(tmp_path):
    """In the branches that they run in."""
    source = save_family(tmp_path / "model", "granitemoe", intermediate_size=64)
    file = tmp_path / "model.gguf"
    write_gguf(file, source, "Q4_1", arranged="Q4_1")
    bundle = quantized(tmp_path, file, "int4")
    linears = load_bundle(bundle).manifest.quantization.linears
    assert {linears[f"layers.1.experts.3.{name}"].format for name in ("gate_up_proj", "down_proj")} == {
        OFFSET_BLOCKS4
    }
    assert verify(bundle, file).passed


def test_int4_rounds_what_no_file_has_in_blocks(tmp_path):
    source = make_model(tmp_path / "model", "llama", changes=WIDE)
    assert formats(quantized(tmp_path, source, "int4")) == {ROWS, BLOCKS4}


def test_int4_takes_int8_rows_where_blocks_do_not_divide(tmp_path):
    source = make_model(tmp_path / "model", "llama")  # 112 inputs of down_proj
    linears = load_bundle(quantized(tmp_path, source, "int4")).manifest.quantization.linears
    assert {name: linears[f"layers.1.{name}"].format for name in ("down_proj", "o_proj")} == {
        "down_proj": ROWS,
        "o_proj": BLOCKS4,
    }


def test_rows_that_lose_much_more_than_blocks_become_blocks(tmp_path, monkeypatch):
    assert decision.limit(0.001) == 0.06
    assert decision.limit(0.1) == pytest.approx(0.3)
    monkeypatch.setattr(decision, "_WORST_ROWS", 0.0)
    monkeypatch.setattr(decision, "limit", lambda blocks_error: 0.0)
    source = make_model(tmp_path / "model", "llama", changes=WIDE)
    bundle = quantized(tmp_path, source, "int8")
    assert formats(bundle) == {ROWS, BLOCKS8}
    assert verify(bundle, source).passed


def test_rows_that_lose_much_get_inputs_of_two_bytes_and_draft(tmp_path, monkeypatch, model):
    monkeypatch.setattr(decision, "_WORST_ROWS", 0.0)
    predictors = make_predictors(tmp_path / "predictors", model)
    bundle = quantized(tmp_path, model, "int8", predictors=predictors)
    linears = load_bundle(bundle).manifest.quantization.linears
    tables = {"embed_tokens", "lm_head"}
    assert {name for name, linear in linears.items() if linear.format == ROWS} == tables
    assert {linear.format for linear in linears.values()} == set(ROW_FORMATS)
    report = verify(bundle, model)
    assert report.passed
    assert "integer products" in " ".join(check.name for check in report.checks)


def test_a_table_of_tokens_is_smoothed_for_the_head_that_it_is(tmp_path):
    source = make_model(tmp_path / "model", "llama")
    bundle = quantized(tmp_path, source, "int8")
    smoothing = load_file(bundle / "model.safetensors")["embed_tokens.smoothing"]
    assert smoothing.std() > 0.01
    own = load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    stored = StoredWeights(bundle, open_checkpoint(source), load_bundle(bundle).manifest.quantization)
    assert (stored.tensor("model.embed_tokens.weight") - own).abs().max() < 0.02 * own.abs().max()
    assert verify(bundle, source).passed


def refused(tmp_path, options, error, match):
    with pytest.raises(error, match=match):
        export_bundle(options)
    assert not options.output.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_refused(dtype, model, tmp_path):
    options = ExportOptions(model, tmp_path / "bundle", dtype=dtype, quantize="int8")
    refused(tmp_path, options, FirpError, f"goes with float32.*--dtype {dtype}")


def test_a_small_calibration_text_is_refused(tmp_path, pytestconfig):
    (tmp_path / "text").write_text("def add(a, b):\n    return a + b\n")
    demo = pytestconfig.rootpath / "tests/demo_model"
    options = ExportOptions(demo, tmp_path / "bundle", quantize="int8", quantize_text=tmp_path / "text")
    refused(tmp_path, options, CheckpointError, "calibration text too small.*at least 512")


def test_a_text_that_cannot_be_read_is_refused(tmp_path, pytestconfig):
    demo = pytestconfig.rootpath / "tests/demo_model"
    options = ExportOptions(demo, tmp_path / "bundle", quantize="int8", quantize_text=tmp_path / "none")
    refused(tmp_path, options, CheckpointError, "cannot read the calibration text")


def test_a_loss_beyond_the_limit_is_refused(model, tmp_path):
    options = ExportOptions(model, tmp_path / "bundle", quantize="int4", quality_limit=0.001)
    refused(tmp_path, options, CheckFailedError, "int4 costs too much quality.*at most .0.001 %")


def test_activations_that_are_not_finite_are_refused(model, tmp_path):
    changed = make_model(tmp_path / "model", "llama")
    tensors = load_file(changed / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.full((112, 64), 3e38)
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})
    options = ExportOptions(changed, tmp_path / "bundle", quantize="int8")
    refused(tmp_path, options, CheckpointError, "are not finite on the calibration text")


def test_other_backends_refuse_in_one_line(bundle):
    quantization = load_bundle(bundle).manifest.quantization
    with pytest.raises(FirpError, match="CUDA does not run int8 bundles.*int8 rows.*--quantize none"):
        refuse_quantized(quantization, "CUDA")
    refuse_quantized(None, "CUDA")


def test_no_engine_is_built_from_integers(bundle):
    with pytest.raises(FirpError, match="tensorrt-rtx does not run int8 bundles"):
        build_engines(bundle, BuildOptions("tensorrt-rtx"))


def test_an_unknown_method_in_a_manifest_is_refused(bundle, tmp_path):
    manifest = read_manifest(bundle / "firp.json")
    write_manifest(tmp_path, replace(manifest, quantization=replace(manifest.quantization, method="int2")))
    assert json.loads((tmp_path / "firp.json").read_text())["quantization"]["method"] == "int2"
    with pytest.raises(FirpError, match="unknown quantization.*int2"):
        read_manifest(tmp_path / "firp.json")
