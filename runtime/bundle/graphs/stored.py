"""The weights of a bundle where they lie: safetensors files, read without their values.

In: a bundle's folder, and what its manifest says of the model. Out: a `StoredWeight` for each name, of
exactly the type and shape that the model has, inside its file; or a BundleError.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.graphs.onnx_file import StoredWeight
from firp.runtime.bundle.model_config import ModelConfig
from firp.runtime.bundle.precision import (
    BLOCK,
    FORMATS4,
    ROW_FORMATS,
    ROWS,
    Precision,
    Quantization,
    stored_inputs,
)
from firp.runtime.bundle.weight_table import DRAFT_HEAD, PREDICTORS_WEIGHT, rope_shapes, weight_shapes
from firp.runtime.errors import BundleError

_MOST_HEADER_BYTES = 64 << 20
_SMOOTHED = "embed_tokens.smoothing"  # what a table is multiplied with for the head's sake
_AGAIN = "export the model again"
_BYTE_TYPES = {row.safetensors: row for row in DTYPES.values()}


class Blueprint(NamedTuple):
    """What the graphs of a bundle depend on, besides where their weights lie."""

    model: ModelConfig
    prediction_layer: int
    num_predictors: int
    precision: Precision
    quantization: Quantization | None


def weight_file(graph: str) -> str:
    """The file of a bundle that holds a graph's weights."""
    return "predictors.safetensors" if graph == "predictors" else "model.safetensors"


def stored_weights(folder: Path, blueprint: Blueprint) -> dict[str, StoredWeight]:
    """Where each weight lies. Raises BundleError for a file that does not hold exactly these."""
    wanted = _wanted(blueprint, _draft_tokens(folder, blueprint))
    if blueprint.model.tie_word_embeddings and _SMOOTHED in _header(folder / weight_file("upper"))[0]:
        wanted[_SMOOTHED] = ("float32", (blueprint.model.hidden_size,))
    found = _read(folder / weight_file("upper"), wanted)
    if blueprint.num_predictors:
        size = blueprint.model.hidden_size
        stacked = {PREDICTORS_WEIGHT: (blueprint.precision.weights, (blueprint.num_predictors * size, size))}
        found |= _read(folder / weight_file("predictors"), stacked)
    return found


_Wanted = dict[str, tuple[str, tuple[int, ...]]]  # name -> type, shape


def _wanted(blueprint: Blueprint, draft_tokens: int | None) -> _Wanted:
    model, quantization = blueprint.model, blueprint.quantization
    dtype = blueprint.precision.weights
    shapes = weight_shapes(model)
    formats = quantization.formats if quantization else {}
    if draft_tokens is not None:
        shapes[f"{DRAFT_HEAD}.weight"] = (draft_tokens, model.hidden_size)
        if "lm_head" in model.biases:
            shapes[f"{DRAFT_HEAD}.bias"] = (draft_tokens,)
        formats |= {DRAFT_HEAD: ROWS} if quantization else {}
    if unknown := sorted(set(formats) - {name.removesuffix(".weight") for name in shapes}):
        raise BundleError(
            "bad quantization in the manifest", got=f"{unknown[0]!r:.60}, no layer of it", fix=_AGAIN
        )
    wanted = {}
    for name, shape in shapes.items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and layer in formats:
            wanted |= _quantized(layer, shape, formats[layer])
        else:
            wanted[name] = (dtype, shape)
    return wanted | {name: (dtype, shape) for name, shape in rope_shapes(model).items()}


def _quantized(layer: str, shape: tuple[int, ...], form: str) -> _Wanted:
    """The tensors of one quantized matrix [out, in]."""
    if len(shape) != 2 or (form not in ROW_FORMATS and shape[1] % BLOCK):
        raise BundleError(
            "bad quantization in the manifest", got=f"{layer} as {form}, {list(shape)}", fix=_AGAIN
        )
    out, size = shape[0], stored_inputs(shape[1], form)
    scales = (out,) if form in ROW_FORMATS else (size // BLOCK, out)
    integers = "uint4" if form in FORMATS4 else "int8"
    tensors = {f"{layer}.weight": (integers, (size, out)), f"{layer}.scale": ("float32", scales)}
    if form not in ROW_FORMATS:
        tensors[f"{layer}.zero_point"] = (integers, scales)
    return tensors


def _draft_tokens(folder: Path, blueprint: Blueprint) -> int | None:
    """How many tokens pseudo rows are decoded over; None: all."""
    entry = _header(folder / weight_file("upper"))[0].get(f"{DRAFT_HEAD}.weight")
    if entry is None or not blueprint.num_predictors:
        return None
    sizes = set(_sizes(entry)) - {blueprint.model.hidden_size}
    return sizes.pop() if len(sizes) == 1 else blueprint.model.hidden_size


def _read(file: Path, wanted: _Wanted) -> dict[str, StoredWeight]:
    """The wanted tensors of a file, which holds no others, but factors that no graph reads. Raises
    BundleError.
    """
    entries, start, size = _header(file)
    extra = [name for name in entries if name not in wanted and not name.endswith(".smoothing")]
    if odd := sorted(set(wanted) - set(entries)) or sorted(extra):
        got = f"{'no' if odd[0] in wanted else 'also'} {odd[0]!r:.100} in '{file}'"
        raise BundleError("weights of another model", got=got, fix=_AGAIN)
    found = {}
    for name, (dtype, shape) in wanted.items():
        packed = dtype == "uint4"
        nbytes = math.prod(shape) // 2 if packed else math.prod(shape) * DTYPES[dtype].itemsize
        begin, end = _offsets(entries[name])
        given = (_dtype(entries[name]), _sizes(entries[name]))
        if given != (("uint8", (nbytes,)) if packed else (dtype, shape)) or end - begin != nbytes:
            got = f"{name} {given[0]} {list(given[1])!s:.60} at bytes {begin} to {end} of '{file}'"
            raise BundleError(
                "weights of another model", got=got, expected=f"{dtype} {list(shape)}", fix=_AGAIN
            )
        if not 0 <= begin <= end <= size - start:
            got = f"{name} ends at byte {start + end} of '{file}', which has {size}"
            raise BundleError("weights end outside their file", got=got, fix=_AGAIN)
        found[name] = StoredWeight(file.name, dtype, shape, start + begin, nbytes)
    return found


def _header(file: Path) -> tuple[dict[str, Any], int, int]:
    """Entries by name, where the data begins, and the file's size in bytes. Raises BundleError."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _MOST_HEADER_BYTES):
            got = f"a header of {length} bytes in '{file}', which has {size}"
            raise BundleError("not a safetensors file", got=got, fix=_AGAIN)
        content = opened.read(length)
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError("not a safetensors file", got=f"'{file}': {error!s:.100}", fix=_AGAIN) from error
    if not isinstance(entries, dict):
        raise BundleError("not a safetensors file", got=f"'{file}': {entries!r:.60}", fix=_AGAIN)
    entries.pop("__metadata__", None)
    return entries, 8 + length, size


def _dtype(entry: Any) -> str | None:
    row = _BYTE_TYPES.get(str(entry.get("dtype"))) if isinstance(entry, Mapping) else None
    return row.name if row else None


def _sizes(entry: Any) -> tuple[int, ...]:
    return _integers(entry.get("shape") if isinstance(entry, Mapping) else None)


def _offsets(entry: Any) -> tuple[int, int]:
    offsets = _integers(entry.get("data_offsets") if isinstance(entry, Mapping) else None)
    return offsets if len(offsets) == 2 else (0, -1)


def _integers(value: Any) -> tuple[int, ...]:
    """A list of integers; what is none has no place and no size."""
    good = isinstance(value, list) and all(type(item) is int for item in value)
    return tuple(value) if good else (-1,)
