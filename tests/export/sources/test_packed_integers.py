"""Checkpoints of AutoAWQ and GPTQ: exported to the byte as the model of the values that they stand for,
and kept bit for bit by int4. Packed here by the words of the formats, one value at a time.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.family_models import save_family

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.export.sources.safetensors_file import read_safetensors
from firp.export.verify.checks import verify
from firp.export.weights.fingerprint import fingerprint
from firp.export.weights.stream import read_chunks
from firp.runtime.errors import CheckpointError

GROUP = 32
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)  # which output lies in each four bits of a word


def words(values, places):
    """Values [n, 8 m] packed along rows: [n, m]."""
    packed = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
    for bits, place in enumerate(places):
        packed |= values[:, place::8].astype(np.uint32) << np.uint32(4 * bits)
    return torch.from_numpy(packed.view(np.int32))


def parts(rng, out, size, method, less_one=True):
    """The tensors of one matrix, and the values [out, in] that they stand for."""
    integers = rng.integers(0, 16, (size, out))
    zeros = rng.integers(1, 16, (size // GROUP, out))
    scales = torch.from_numpy(rng.uniform(0.001, 0.02, (size // GROUP, out))).half()
    values = (integers - np.repeat(zeros, GROUP, 0)) * np.repeat(scales.float().numpy(), GROUP, 0)
    if method == "awq":
        made = {"qweight": words(integers, AWQ_PLACES), "qzeros": words(zeros, AWQ_PLACES)}
    else:
        made = {
            "qweight": words(integers.T, range(8)).T,
            "qzeros": words(zeros - less_one, range(8)),
            "g_idx": torch.arange(size, dtype=torch.int32) // GROUP,
        }
    return made | {"scales": scales}, torch.from_numpy(values.T.astype(np.float32))


def write(folder, like, tensors, quantization=None):
    folder.mkdir()
    config = json.loads((like / "config.json").read_text())
    config |= {"quantization_config": quantization} if quantization else {}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def both(root, quantization, less_one=True):
    """The same model twice: of packed integers, and of the values that they stand for."""
    original = save_family(root / "original", "llama", intermediate_size=128)
    plain = load_file(original / "model.safetensors")
    packed, rng = dict(plain), np.random.default_rng(0)
    for name in [name for name in plain if name.endswith("_proj.weight")]:
        method = quantization["quant_method"]
        made, plain[name] = parts(rng, *plain[name].shape, method, less_one)
        del packed[name]
        packed |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in made.items()}
    return write(root / "values", original, plain), write(root / "packed", original, packed, quantization)


@pytest.mark.parametrize(
    ("quantization", "less_one"),
    [(AWQ, True), (GPTQ, True), (GPTQ | {"checkpoint_format": "gptq_v2"}, False)],
    ids=["awq", "gptq", "gptq_v2"],
)
def test_values_and_integers_are_the_checkpoint_s_own(quantization, less_one, tmp_path):
    values, packed = both(tmp_path, quantization, less_one)
    wanted = export_bundle(ExportOptions(values, tmp_path / "a")).files["model.safetensors"]
    assert export_bundle(ExportOptions(packed, tmp_path / "b")).files["model.safetensors"] == wanted
    manifest = export_bundle(ExportOptions(packed, tmp_path / "c", quantize="int4", quality_limit=1e6))
    assert all(form.kept for name, form in manifest.quantization.linears.items() if "_proj" in name)
    report = verify(tmp_path / "c", packed)
    assert report.passed
    (steps,) = (check for check in report.checks if check.name.startswith("steps from the model's weights"))
    assert steps.value == steps.limit == 0
    assert fingerprint(open_checkpoint(packed)) != fingerprint(open_checkpoint(values))


def test_a_zero_point_of_sixteen(tmp_path):
    """GPTQ's file holds 15 for it, and it does not fit four bits: such a layer is rounded anew."""
    _, packed = both(tmp_path, GPTQ)
    tensors = load_file(packed / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.qzeros"))
    tensors[name] |= 15
    save_file(tensors, packed / "model.safetensors")
    manifest = export_bundle(ExportOptions(packed, tmp_path / "bundle", quantize="int4", quality_limit=1e6))
    again = [n for n, form in manifest.quantization.linears.items() if "_proj" in n and not form.kept]
    assert len(again) == 1
    assert again[0].endswith("down_proj")
    assert verify(tmp_path / "bundle", packed).passed


def test_rows_of_a_packed_tensor(tmp_path):
    _, packed = both(tmp_path, AWQ)
    checkpoint = open_checkpoint(packed)
    name = "model.layers.0.mlp.gate_proj.weight"
    record = checkpoint.tensors[name]
    whole = np.concatenate(list(read_chunks(name, record))).reshape(record.shape)
    some = np.concatenate(list(read_chunks(name, record.rows(8, 24).rows(2, 5)))).reshape(3, -1)
    assert (some == whole[10:13]).all()
    assert read_safetensors(packed / "model.safetensors", quantized=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 8}, "awq checkpoint of another layout . got bits 8, expected 4"),
        ({"version": "gemv"}, "got version 'gemv', expected gemm"),
        ({"quant_method": "gptq", "desc_act": True}, "got desc_act True, expected False"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "got checkpoint_format 'marlin'"),
        ({"group_size": 0}, "bad group_size of awq . got 0"),
        ({"group_size": 64}, "unsupported layout of model.layers.0.mlp.down_proj.qweight"),
        ({"quant_method": "bitsandbytes"}, "quantized checkpoint . got quant_method bitsandbytes.*awq, gptq"),
    ],
)
def test_another_layout_is_named(change, message, tmp_path):
    _, packed = both(tmp_path, AWQ)
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] |= change
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(packed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, n: t.pop(f"{n}.qzeros"), "no qzeros of model.layers.1.self_attn.q_proj"),
        (lambda t, n: t.update({f"{n}.scales": t[f"{n}.scales"].float()}), "unsupported dtype of"),
        (lambda t, n: t[f"{n}.scales"].fill_(float("inf")), "scales of packed integers hold NaN or inf"),
        (
            lambda t, n: t.update({f"{n}.extra": t[f"{n}.qzeros"].clone()}),
            "unsupported dtype of .*extra . got int32",
        ),
    ],
)
def test_a_part_that_is_wrong_is_named(change, message, tmp_path):
    _, packed = both(tmp_path, AWQ)
    tensors = load_file(packed / "model.safetensors")
    change(tensors, "model.layers.1.self_attn.q_proj")
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        export_bundle(ExportOptions(packed, tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()
