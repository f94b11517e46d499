"""The formats of a quantized weight, and what is computed with them.

In: a weight [out, in] f32, or rows of activations [n, in]. Out: integers [in, out] with their scales,
the layout that the graphs read, and the values that these stand for.
"""

from typing import NamedTuple

import numpy as np

from firp.runtime.bundle.graphs.products import ACTIVATION_LEVELS, FINER
from firp.runtime.bundle.precision import (
    BLOCK,
    BLOCKS4,
    BLOCKS8,
    DIGITS,
    FINE_ROWS,
    FORMATS4,
    ROW_FORMATS,
    digit_blocks,
)

_LEVELS = 127  # of int8, on either side of zero
_NIBBLE = 15


class Integers(NamedTuple):
    """A quantized weight. Its values are (weight - zero_point) * scale + offset, all of them those of
    the block of inputs where they are [in / BLOCK, out], and of the output where they are [out].
    """

    weight: np.ndarray  # [in, out] i8, or u8 of values up to 15
    scale: np.ndarray  # [out] f32, or [in / BLOCK, out]
    # of blocks: u8, or i8 zeros, as scale. None of rows, whose zero is 0. Blocks of int8 have zeros
    # because ONNX Runtime, where it turns weights to uint8, gives a weight without any one for all
    # blocks, which DequantizeLinear refuses.
    zero_point: np.ndarray | None = None
    offset: np.ndarray | None = None  # as scale; None: 0; stored as digits

    def values(self) -> np.ndarray:
        """What it stands for, [out, in] f32."""
        if self.scale.ndim == 1:
            return (self.weight * self.scale).T
        blocks = self.weight.reshape(len(self.scale), -1, self.weight.shape[1]).astype(np.float32)
        blocks -= self.zero_point[:, None]
        blocks = blocks * self.scale[:, None]
        if self.offset is not None:
            blocks += self.offset[:, None]
        return blocks.reshape(self.weight.shape).T


def with_digits(integers: Integers) -> Integers:
    """A weight whose offsets are more inputs, as it is stored: for each digit an input for each block of
    the weight, in blocks of their own. A digit is the nearest to what those before it leave, which is at
    most half a step of its own.
    """
    own = len(integers.offset)
    left = np.zeros((-(-own // BLOCK) * BLOCK, integers.offset.shape[1]), np.float32)
    left[:own] = integers.offset
    parts = [integers]
    for _ in range(DIGITS):
        digit = quantize(left.T, BLOCKS4)
        left = left - digit.values().T
        parts.append(digit)
    return Integers(*(np.concatenate(side) for side in zip(*(part[:3] for part in parts), strict=True)))


def digits(stored: Integers) -> list[Integers]:
    """The digits that a weight is stored with, each [in / BLOCK, out], filled up with zeros to blocks."""
    each = digit_blocks(len(stored.scale))
    first = len(stored.scale) - DIGITS * each
    places = [slice(start, start + each) for start in range(first, len(stored.scale), each)]
    return [
        Integers(stored.weight[at.start * BLOCK : at.stop * BLOCK], stored.scale[at], stored.zero_point[at])
        for at in places
    ]


def without_digits(stored: Integers) -> Integers:
    """The weight that is stored with digits, whose offsets are what these say."""
    own = len(stored.scale) - DIGITS * digit_blocks(len(stored.scale))
    offset = sum(digit.values().T for digit in digits(stored))[:own]
    return Integers(stored.weight[: own * BLOCK], stored.scale[:own], stored.zero_point[:own], offset)


def quantize(weight: np.ndarray, form: str) -> Integers:
    """A weight [out, in] f32 rounded to the nearest in a format. Blocks: `in` is a multiple of BLOCK."""
    if form in ROW_FORMATS:
        scale = _nonzero(np.abs(weight).max(1) / np.float32(_LEVELS))
        return Integers(_rounded(weight / scale[:, None]), scale)
    blocks = weight.T.reshape(-1, BLOCK, len(weight))  # [in / BLOCK, BLOCK, out]
    if form == BLOCKS8:
        scale = _nonzero(np.abs(blocks).max(1) / np.float32(_LEVELS))
        integers = np.rint(blocks / scale[:, None]).astype(np.int8)
        return Integers(integers.reshape(-1, len(weight)), scale, np.zeros(scale.shape, np.int8))
    scale, zero_point = nibble_grid(blocks)
    integers = np.rint(blocks / scale[:, None]) + zero_point[:, None]
    integers = np.clip(integers, 0, _NIBBLE).astype(np.uint8)
    return Integers(integers.reshape(-1, len(weight)), scale, zero_point)


def nibble_grid(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales f32 and zero points u8, [n, out] each, of blocks [n, BLOCK, out] in 4 bits: from the
    least to the largest value, with zero among the values.
    """
    low = np.minimum(blocks.min(1), 0)
    high = np.maximum(blocks.max(1), 0)
    scale = _nonzero((high - low) / np.float32(_NIBBLE))
    return scale, np.rint(-low / scale).astype(np.uint8)


def round_activations(rows: np.ndarray, form: str) -> np.ndarray:
    """Activations [n, in] as a product in that format takes them: rounded to int8 on a scale of each
    row, or of each block of it; for two bytes, what that leaves once more.
    """
    groups = rows if form in ROW_FORMATS else rows.reshape(len(rows), -1, BLOCK)
    step = np.abs(groups).max(-1, keepdims=True) / np.float32(ACTIVATION_LEVELS)
    step = _nonzero(step)
    scaled = groups / step
    integers = np.rint(scaled)
    if form == FINE_ROWS:
        integers = integers + np.rint((scaled - integers) * FINER) / np.float32(FINER)
    return (integers * step).reshape(rows.shape)


def dividing(shape: tuple[int, ...]) -> bool:
    """Whether blocks divide the inputs of a weight [out, in], and pairs of 4 bits its outputs."""
    return shape[1] % BLOCK == 0 and shape[0] % 2 == 0


def bits_of(form: str) -> str:
    """The type that integers of a format are written in."""
    return "uint4" if form in FORMATS4 else "int8"


def _nonzero(scale: np.ndarray) -> np.ndarray:
    """Scales, 1 where all values that share one are 0."""
    return np.where(scale > 0, scale, np.float32(1)).astype(np.float32)


def _rounded(values: np.ndarray) -> np.ndarray:
    """Integers [in, out] of scaled values [out, in]."""
    return np.ascontiguousarray(np.rint(values).astype(np.int8).T)
