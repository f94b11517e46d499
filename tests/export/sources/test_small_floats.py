"""Checkpoints of small floats beside their scales: exported to the byte as the model of the values that
transformers makes of them.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.family_models import save_family
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.export.verify.checks import verify
from firp.export.weights import stream
from firp.runtime.errors import CheckpointError

STATIC = {"quant_method": "fp8", "activation_scheme": "static"}
FP8 = {"quant_method": "fp8", "weight_block_size": [16, 16]}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}


def write(folder, like, tensors, quantization=None):
    """A model directory with the configuration of another."""
    folder.mkdir()
    config = json.loads((like / "config.json").read_text())
    config |= {"quantization_config": quantization} if quantization else {}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def matrices(tensors):
    """Names of matrices, but of embeddings and the head."""
    kept = ("head.weight", "tokens.weight", "embed_in.weight", "embed_out.weight")
    return [name for name, tensor in tensors.items() if tensor.ndim == 2 and not name.endswith(kept)]


def both(tmp_path, model_type, scales_of, end, quantization, **changes):
    """The same model twice: as float8, and as the values that stand for it."""
    original = save_family(tmp_path / "original", model_type, **changes)
    plain = load_file(original / "model.safetensors")
    small = dict(plain)
    for name in matrices(plain):
        scales = scales_of(plain[name])
        small[name] = (plain[name] * 100).to(torch.float8_e4m3fn)
        small[f"{name}{end}"] = scales
        rows, columns = plain[name].shape
        wide = scales.reshape(-1, scales.shape[-1] if scales.ndim else 1)
        wide = wide.repeat_interleave(-(-rows // len(wide)) if len(wide) != rows // 16 else 16, 0)
        wide = wide.repeat_interleave(16 if wide.shape[1] > 1 else columns, 1)
        plain[name] = small[name].float() * wide[:rows, :columns]
    values = write(tmp_path / "values", original, plain)
    return values, write(tmp_path / "small", original, small, quantization)


def blocks(matrix):
    return torch.rand(-(-matrix.shape[0] // 16), -(-matrix.shape[1] // 16)) * 0.02


def same(values, small, tmp_path):
    wanted = export_bundle(ExportOptions(values, tmp_path / "a")).files
    found = export_bundle(ExportOptions(small, tmp_path / "b")).files
    return found["model.safetensors"] == wanted["model.safetensors"]


@pytest.mark.parametrize("chunk", [8 << 20, 1000])
def test_blocks_of_float8(chunk, tmp_path, monkeypatch):
    """Of a family whose rows stand in groups, which begin inside blocks."""
    monkeypatch.setattr(stream, "_CHUNK_BYTES", chunk)
    values, small = both(tmp_path, "gpt_neox", blocks, "_scale_inv", FP8, intermediate_size=48)
    assert same(values, small, tmp_path)
    tensors = load_file(small / "model.safetensors")
    name = "gpt_neox.layers.1.attention.query_key_value.weight"
    theirs = Fp8Dequantize(None)._dequantize_one(tensors[name], tensors[f"{name}_scale_inv"], torch.float32)
    assert torch.equal(load_file(values / "model.safetensors")[name], theirs)


def test_keys_and_values_of_latent_attention_begin_inside_blocks(tmp_path):
    sizes = {"q_lora_rank": 16, "kv_lora_rank": 28, "qk_nope_head_dim": 12, "v_head_dim": 8}
    sizes |= {"intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 16}
    values, small = both(tmp_path, "deepseek_v3", blocks, "_scale_inv", FP8, **sizes)
    assert same(values, small, tmp_path)


@pytest.mark.parametrize(
    ("scales", "end", "quantization"),
    [
        (lambda matrix: torch.rand(()) * 0.02, "_scale_inv", STATIC),
        (
            lambda matrix: (torch.rand(len(matrix), 1) * 0.02).bfloat16(),
            "_scale",
            {"quant_method": "compressed-tensors", "format": "float-quantized"},
        ),
        (lambda matrix: torch.rand(1) * 0.02, "_scale", {"quant_method": "modelopt", "quant_algo": "FP8"}),
    ],
    ids=["a matrix", "rows", "a matrix of modelopt"],
)
def test_scales_of_matrices_and_rows(scales, end, quantization, tmp_path):
    values, small = both(tmp_path, "qwen3", scales, end, quantization)
    tensors = load_file(small / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.input_scale"] = torch.ones(1)
    tensors["model.layers.1.self_attn.k_proj.k_scale"] = torch.ones(1)
    save_file(tensors, small / "model.safetensors")
    assert same(values, small, tmp_path)


@pytest.fixture
def gpt_oss(tmp_path):
    """A model of float4 experts, and that of the values that transformers reads."""
    original = save_family(tmp_path / "original", "gpt_oss", hidden_size=64, intermediate_size=32)
    plain = load_file(original / "model.safetensors")
    small = dict(plain)
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in plain if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = small.pop(name).shape
        shape = (experts, rows, columns // 32)
        codes = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(120, 126, shape, dtype=torch.uint8, generator=generator)
        small |= {f"{name}_blocks": codes, f"{name}_scales": scales}
        plain[name] = convert_moe_packed_tensors(codes, scales, dtype=torch.float32)
    values = write(tmp_path / "values", original, plain)
    return values, write(tmp_path / "small", original, small, MXFP4)


def test_float4(gpt_oss, tmp_path):
    values, small = gpt_oss
    assert same(values, small, tmp_path)
    report = verify(tmp_path / "b", small)
    assert [check for check in report.checks if not check.passed] == []


def edited(small, change):
    tensors = load_file(small / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, small / "model.safetensors")


DOWN = "model.layers.1.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{DOWN}_scales"), f"no scales of {DOWN}_blocks"),
        (lambda t: t.update({f"{DOWN}_scales": t[f"{DOWN}_scales"][:, 1:]}), f"unsupported scales of {DOWN}"),
        (lambda t: t[f"{DOWN}_scales"].view(-1)[0:1].fill_(255), r"down_proj\[0\] holds NaN or infinity"),
        (lambda t: t.update({"model.norm.weight": torch.ones(64).byte()}), "unsupported dtype of model.norm"),
    ],
)
def test_bad_float4_is_named(change, message, gpt_oss, tmp_path):
    small = gpt_oss[1]
    edited(small, change)
    with pytest.raises(CheckpointError, match=message):
        export_bundle(ExportOptions(small, tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


def test_bad_float8_is_named(tmp_path):
    small = both(tmp_path, "qwen3", blocks, "_scale_inv", FP8)[1]
    name = "model.layers.0.mlp.down_proj.weight"
    edited(small, lambda t: t.update({f"{name}_scale_inv": torch.ones(2, 7)}))
    with pytest.raises(CheckpointError, match=rf"unsupported scales of {name}.*\[2, 7\].*block of 16 x 16"):
        open_checkpoint(small)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quantized checkpoint.*bitsandbytes.*mxfp4"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "pack-quantized.*float-q"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, r"modelopt, NVFP4.*modelopt \(FP8\)"),
        ({"quant_method": ["fp8"]}, "quantized checkpoint"),
        (FP8 | {"weight_block_size": [128]}, r"bad weight_block_size.*\[128\]"),
    ],
)
def test_other_methods_are_named(quantization, message, tmp_path):
    small = both(tmp_path, "qwen3", blocks, "_scale_inv", quantization)[1]
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(small)
