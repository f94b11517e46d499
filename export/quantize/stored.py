"""The weights that a quantized bundle holds, in terms of the model that it was made from.

In: a bundle's folder and its checkpoint. Out: the rounded values of any tensor of the checkpoint, with
smoothing undone, and how many steps of their grids these lie from the checkpoint's own.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from firp.export.families.names import PLAIN
from firp.export.quantize.formats import Integers, digits, without_digits
from firp.export.quantize.gptq import MOST_STEPS
from firp.export.quantize.smoothing import row_divisors
from firp.export.sources.checkpoint import Checkpoint, Weight
from firp.export.sources.safetensors_file import read_safetensors
from firp.export.weights.stream import numpy_dtype, read_array, to_sources
from firp.export.weights.torch_model import read_tensor
from firp.runtime.bundle.precision import (
    BLOCK,
    BLOCKS4,
    FORMATS4,
    OFFSET_BLOCKS4,
    ROW_FORMATS,
    Quantization,
)

_HALF = 0.501  # of a step: what rounding to the nearest may move a value, and float32 beside it
_WITH_ROUNDING = 0.9  # of a digit's step, which may be no more than what float32 rounds of a value
_COLUMNS = 1 << 22  # values that are compared at a time


class StoredWeights:
    """The weights of one bundle."""

    def __init__(self, bundle: Path, checkpoint: Checkpoint, quantization: Quantization):
        self._checkpoint = checkpoint
        self._linears = quantization.linears
        self._records = read_safetensors(bundle / "model.safetensors", ("float32", "int8", "uint8"))
        names = self._linears.keys()
        self._smoothing = {
            name: self._array(f"{name}.smoothing") for name in names if f"{name}.smoothing" in self._records
        }
        self._weight_of = {
            source: weight
            for weight in checkpoint.weights
            for source in weight.sources
            if weight.name.endswith(".weight") and weight.name.removesuffix(".weight") in names
        }

    def tensor(self, source: str) -> torch.Tensor:
        """Values of a tensor of the checkpoint: rounded ones f64 where the bundle has them."""
        if source not in self._weight_of:
            return read_tensor(source, self._checkpoint.tensors[source], torch.float32)
        weight = self._weight_of[source]
        if weight.layout != PLAIN:
            row, column = self._factors(weight)
            integers = self._integers(weight)
            values = _in_doubles(integers).values() * row[:, None] / column
            parts = to_sources(weight, values, self._checkpoint.tensors)
            return torch.from_numpy(parts[weight.sources.index(source)])
        start = 0
        for other in weight.sources[: weight.sources.index(source)]:
            start += self._checkpoint.tensors[other].shape[0]
        rows = slice(start, start + self._checkpoint.tensors[source].shape[0])
        integers, (row, column) = self._integers(weight), self._factors(weight)
        part = _in_doubles(_outputs(integers, rows))
        return torch.from_numpy(part.values() * row[rows, None] / column)

    def cached(self, past: np.ndarray) -> np.ndarray:
        """Keys and values [2 L, Hkv, P, Dh] f32 that the layers of the bundle have in their caches where
        those of the model have `past` [2, Hkv, P, Dh]: values are made smoothed, for o_proj.
        """
        _, heads, _, size = past.shape
        layers = []
        for layer in range(self._checkpoint.config.num_hidden_layers):
            divisors = row_divisors(self._checkpoint.config, f"layers.{layer}.qkv_proj", self._smoothing)
            values = 1 if divisors is None else divisors[-heads * size :].reshape(heads, 1, size)
            layers += [past[0], past[1] / values]
        return np.stack(layers)

    def distances(self) -> Iterator[tuple[str, float, float]]:
        """Of each weight its name, the most steps of its grid that a value lies from the checkpoint's,
        and the most that it may. Of an offset the steps are those of its last digit.
        """
        for weight in dict.fromkeys(self._weight_of.values()):
            name = weight.name.removesuffix(".weight")
            form = self._linears[name]
            stored, (row, column) = self._stored(weight), self._factors(weight)
            integers, grid = _with_offsets(stored, form.format), _grid(stored, form.format, weight.shape[1])
            own = read_array(weight, self._checkpoint.tensors)
            worst = 0.0
            for start in range(0, len(own), step := max(1, _COLUMNS // own.shape[1])):
                rows = slice(start, start + step)
                there = own[rows].astype(np.float64) * column / row[rows, None]
                off = np.abs(_in_doubles(_outputs(integers, rows)).values() - there)
                with np.errstate(divide="ignore"):
                    steps = np.divide(off, grid[:, rows].T, out=np.zeros_like(off), where=off > 0)
                worst = max(worst, float(np.max(steps)))
            if form.kept:
                yield name, worst, _WITH_ROUNDING if form.format == OFFSET_BLOCKS4 else 0.0
            else:
                yield name, worst, _HALF + (MOST_STEPS if form.format == BLOCKS4 else 0)

    def _factors(self, weight: Weight) -> tuple[np.ndarray, np.ndarray]:
        """What rows [out] were divided by, and columns [in] multiplied with."""
        name = weight.name.removesuffix(".weight")
        out, size = weight.shape
        row = row_divisors(self._checkpoint.config, name, self._smoothing)
        column = self._smoothing.get(name)
        return (
            np.ones(out) if row is None else row.astype(np.float64),
            np.ones(size) if column is None else column.astype(np.float64),
        )

    def _integers(self, weight: Weight) -> Integers:
        form = self._linears[weight.name.removesuffix(".weight")].format
        return _with_offsets(self._stored(weight), form)

    def _stored(self, weight: Weight) -> Integers:
        name = weight.name.removesuffix(".weight")
        out, size = weight.shape
        form = self._linears[name].format
        values, scale = self._array(f"{name}.weight"), self._array(f"{name}.scale")
        if form in ROW_FORMATS:
            return Integers(values.reshape(size, out), scale)
        zero = self._array(f"{name}.zero_point")
        if form in FORMATS4:
            values, zero = _unpacked(values), _unpacked(zero)
        return Integers(*(side.reshape(-1, out) for side in (values, scale, zero)))

    def _array(self, name: str) -> np.ndarray:
        record = self._records[name]
        count = math.prod(record.shape)
        return np.fromfile(record.file, numpy_dtype(record.dtype), count, offset=record.offset)


def _with_offsets(stored: Integers, form: str) -> Integers:
    """What is stored of a weight, its digits as the offsets that they say."""
    return without_digits(stored) if form == OFFSET_BLOCKS4 else stored


def _grid(stored: Integers, form: str, size: int) -> np.ndarray:
    """The step of each value's grid, [size, out], or [1, out] of rows; 0 where a digit says nothing."""
    if form in ROW_FORMATS:
        return stored.scale[None]
    if form != OFFSET_BLOCKS4:
        return np.repeat(stored.scale, BLOCK, 0)
    last = digits(stored)[-1]
    says = (last.weight.reshape(len(last.scale), BLOCK, -1) != last.zero_point[:, None]).any(1)
    return np.repeat(np.where(says, last.scale, 0), BLOCK**2, 0)[:size]


def _outputs(integers: Integers, rows: slice) -> Integers:
    """Some outputs of a weight."""
    return Integers(*(None if side is None else side[..., rows] for side in integers))


def _in_doubles(integers: Integers) -> Integers:
    offset = None if integers.offset is None else integers.offset.astype(np.float64)
    return integers._replace(scale=integers.scale.astype(np.float64), offset=offset)


def _unpacked(pairs: np.ndarray) -> np.ndarray:
    """Values of 4 bits, two in a byte, the first in the lower half."""
    return np.stack((pairs & 0xF, pairs >> 4), 1).reshape(-1)
