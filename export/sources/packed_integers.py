"""Checkpoints whose matrices are integers of four bits, eight in an int32, as AutoAWQ and GPTQ write
them.

In: quantization_config of config.json, and a table of tensors. Out: the table of a model of float
values, or a CheckpointError that names the field or the tensor. No value is read.
"""

from typing import Any

from firp.export.sources.tensor_record import Packed, TensorRecord
from firp.runtime.errors import CheckpointError

PACKED = ("awq", "gptq")
_TOGETHER = 8  # values of an int32
_PARTS = ("qweight", "qzeros", "scales")
# Fields that change what integers mean, by method: what firp reads, and what a missing one stands for.
_FIELDS = {
    "awq": {"bits": ((4,), 4), "version": (("gemm", "GEMM"), "gemm"), "zero_point": ((True,), True)},
    "gptq": {
        "bits": ((4,), 4),
        "desc_act": ((False,), False),  # else groups are of scattered inputs
        "checkpoint_format": (("gptq", "gptq_v2"), "gptq"),
    },
}


def check_packing(quantization: dict[str, Any]) -> None:
    """Raises CheckpointError for a field whose value firp cannot read."""
    method = quantization["quant_method"]
    for name, (known, default) in _FIELDS[method].items():
        value = quantization.get(name, default)
        if value not in known:
            raise CheckpointError(
                f"{method} checkpoint of another layout",
                got=f"{name} {value!r:.40}",
                expected=" or ".join(map(str, known)),
                fix="export the original checkpoint",
            )
    size = quantization.get("group_size", 128)
    if type(size) is not int or (size != -1 and size < 1):
        raise CheckpointError(f"bad group_size of {method}", got=f"{size!r:.40}", expected="-1, or 1 or more")


def packed_tensors(tensors: dict[str, TensorRecord], quantization: dict[str, Any]) -> dict[str, TensorRecord]:
    """Packed integers joined with their scales and zero points, as the weight that they stand for.
    Raises CheckpointError for a part that is missing, or of another shape.
    """
    found = dict(tensors)
    packed = [name for name in tensors if name.endswith(".qweight")]
    if not packed:
        method = quantization["quant_method"]
        raise CheckpointError("no packed weights", got=f"quant_method {method}", expected="*.qweight tensors")
    for name in packed:
        base = name.removesuffix("qweight")
        found.pop(f"{base}g_idx", None)  # the group of each input: in order, where desc_act is false
        found[f"{base}weight"] = _joined(base, found, quantization)
    for name, record in found.items():
        if record.dtype in ("int32", "uint8", "float8"):
            raise CheckpointError(f"unsupported dtype of {name}", got=record.dtype, expected="a float type")
    return found


def _joined(base: str, found: dict[str, TensorRecord], quantization: dict[str, Any]) -> TensorRecord:
    """One matrix; its parts are taken out of the table."""
    for part in _PARTS:
        if f"{base}{part}" not in found:
            raise CheckpointError(f"no {part} of {base[:-1]}", fix="complete the checkpoint")
    integers, zeros, scales = (found.pop(f"{base}{part}") for part in _PARTS)
    along_inputs = quantization["quant_method"] == "gptq"
    rows, columns = integers.shape if len(integers.shape) == 2 else (0, 0)
    size, out = (rows * _TOGETHER, columns) if along_inputs else (rows, columns * _TOGETHER)
    group = quantization.get("group_size", 128)
    group = size if group == -1 else group
    groups = -(-size // max(1, group))
    wanted = ((groups, out // _TOGETHER), (groups, out))
    if not size or (zeros.shape, scales.shape) != wanted or size % group or out % _TOGETHER:
        raise CheckpointError(
            f"unsupported layout of {base}qweight",
            got=f"qzeros {list(zeros.shape)}, scales {list(scales.shape)} for {list(integers.shape)}",
            expected=f"{list(wanted[0])} and {list(wanted[1])} for groups of {group}",
        )
    if (integers.dtype, zeros.dtype) != ("int32", "int32") or scales.dtype not in ("float16", "bfloat16"):
        raise CheckpointError(
            f"unsupported dtype of {base}qweight",
            got=f"{integers.dtype}, qzeros {zeros.dtype}, scales {scales.dtype}",
            expected="int32, int32, float16 or bfloat16",
        )
    one_less = along_inputs and quantization.get("checkpoint_format", "gptq") == "gptq"
    packed = Packed(along_inputs, zeros, scales, group, one_less)
    return integers._replace(dtype="float32", shape=(out, size), packed=packed)
