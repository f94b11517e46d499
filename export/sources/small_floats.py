"""Checkpoints whose matrices are small floats beside their scales, as they lie on the hub.

In: quantization_config of config.json, and a table of tensors. Out: the table of a model of float
values, or a CheckpointError that names the method or the tensor. No value is read.
"""

import math
from typing import Any

from firp.export.sources.packed_integers import PACKED, check_packing
from firp.export.sources.tensor_record import Scaling, TensorRecord
from firp.runtime.errors import CheckpointError

# methods, and the only kind of theirs that is read
_METHODS = {
    "fp8": None,
    "fbgemm_fp8": None,
    "compressed-tensors": "float-quantized",
    "modelopt": "FP8",
    "mxfp4": None,
}
_KINDS = ("format", "quant_algo")  # the fields that say it
_SCALES = ("_scale_inv", "_scale")  # after the name of a matrix of float8, both of which multiply it
# of layers that round activations, or keys and values, which firp does not
_OF_ACTIVATIONS = (".activation_scale", ".input_scale", ".k_scale", ".v_scale")
_GROUP = 32  # values of float4 that share a scale
_GROUP_BYTES = _GROUP // 2


def check_method(quantization: Any) -> None:
    """Raises CheckpointError for a quantization_config whose weights firp cannot read."""
    found = quantization if isinstance(quantization, dict) else {}
    method, size = found.get("quant_method"), found.get("weight_block_size")
    kind = next((found[name] for name in _KINDS if name in found), None)
    if size is not None and not _is_block(size):
        raise CheckpointError("bad weight_block_size", got=f"{size!r:.60}", expected="rows and columns")
    if method in PACKED:
        return check_packing(found)
    if isinstance(method, str) and method in _METHODS and _METHODS[method] in (None, kind):
        return
    named = f"quant_method {method}" + (f", {kind}" if kind else "")
    known = [name + (f" ({only})" if only else "") for name, only in _METHODS.items()]
    raise CheckpointError(
        "quantized checkpoint",
        got=f"{named:.80}" if found else f"{quantization!r:.60}",
        expected=f"float weights, {', '.join((*known, *PACKED))}",
        fix="export the original checkpoint",
    )


def scaled_tensors(tensors: dict[str, TensorRecord], quantization: dict[str, Any]) -> dict[str, TensorRecord]:
    """Tensors of small floats joined with their scales, which are no tensors of the model. Raises
    CheckpointError for one that has none, or scales of another layout.
    """
    found = dict(tensors)
    for name, record in tensors.items():
        if record.dtype == "float8":
            scales = _scales(found, name, [f"{name}{end}" for end in _SCALES])
            found[name] = _of_blocks(name, record, scales, quantization.get("weight_block_size"))
        elif name.endswith("_blocks") and record.dtype == "uint8":
            base = name.removesuffix("_blocks")
            found[base] = _of_groups(name, found.pop(name), _scales(found, name, [f"{base}_scales"]))
    found = {name: record for name, record in found.items() if not name.endswith(_OF_ACTIVATIONS)}
    for name, record in found.items():
        if record.dtype in ("uint8", "int32"):
            raise CheckpointError(f"unsupported dtype of {name}", got=record.dtype, expected="a float type")
    return found


def _is_block(size: Any) -> bool:
    return isinstance(size, list) and len(size) == 2 and all(type(each) is int and each > 0 for each in size)


def _scales(tensors: dict[str, TensorRecord], name: str, names: list[str]) -> TensorRecord:
    """The scales of a matrix, which are taken out of the table."""
    for each in names:
        if each in tensors:
            return tensors.pop(each)
    raise CheckpointError(f"no scales of {name}", expected=" or ".join(names), fix="complete the checkpoint")


def _of_blocks(name: str, record: TensorRecord, scales: TensorRecord, size: Any) -> TensorRecord:
    """A matrix of float8 with one scale, one for each row, or one for each block of the given size."""
    rows, columns = record.shape if len(record.shape) == 2 else (0, 0)
    height, width = size or (0, 0)
    layouts = [((1, 1), (rows, columns)), ((rows, 1), (1, columns))]
    if size:
        layouts.append(((-(-rows // height), -(-columns // width)), (height, width)))
    for shape, block in layouts:
        if rows and (scales.shape == shape or (shape[1] == 1 and math.prod(scales.shape) == shape[0])):
            scaling = Scaling("float8", scales._replace(shape=shape), block)
            return record._replace(dtype="float32", scaling=scaling)
    raise CheckpointError(
        f"unsupported scales of {name}",
        got=f"{list(scales.shape)} for {list(record.shape)}",
        expected="one, one for each row" + (f", or one for each block of {height} x {width}" if size else ""),
    )


def _of_groups(name: str, record: TensorRecord, scales: TensorRecord) -> TensorRecord:
    """Matrices of float4, whose rows are the columns of the tensor that stands for them."""
    *before, rows, groups, size = record.shape if len(record.shape) > 2 else (0, 0, 0)
    if size != _GROUP_BYTES or scales.shape != (*before, rows, groups) or scales.dtype != "uint8":
        raise CheckpointError(
            f"unsupported scales of {name}",
            got=f"{scales.dtype} {list(scales.shape)} for {list(record.shape)}",
            expected=f"a byte for each {_GROUP_BYTES} of a row",
        )
    scaling = Scaling("float4", scales, (1, _GROUP), transposed=True)
    return record._replace(shape=(*before, groups * _GROUP, rows), dtype="float32", scaling=scaling)
