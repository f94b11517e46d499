"""Integers of four bits, eight in an int32, in the order in which AutoAWQ and GPTQ pack them.

In: the record of a packed tensor. Out: its integers on their grid, or the values that they stand for.
"""

from typing import NamedTuple

import ml_dtypes
import numpy as np

from firp.export.sources.tensor_record import TensorRecord
from firp.runtime.errors import CheckpointError

_SHIFTS = 4 * np.arange(8, dtype=np.uint32)
_AWQ_SHIFTS = _SHIFTS[[0, 4, 1, 5, 2, 6, 3, 7]]  # even places lie in the lower half, odd ones above
_FLOATS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}  # of scales


class Grid(NamedTuple):
    """Integers on a grid of their own for each group of inputs: (integers - zeros) * scales."""

    integers: np.ndarray  # [in, out] u8, up to 15
    scales: np.ndarray  # [groups, out] f32
    zeros: np.ndarray  # [groups, out] u8, up to 16


def read_grid(record: TensorRecord) -> Grid:
    """The integers that a packed tensor holds. Raises CheckpointError for a scale that is not finite."""
    return _grid(_bytes(record), record)


def unpacked(content: np.ndarray, record: TensorRecord) -> np.ndarray:
    """Values f32 of a packed tensor [out, in], flat. content: its bytes in the file. Raises
    CheckpointError for a scale that is not finite.
    """
    integers, scales, zeros = _grid(content, record)
    groups = integers.reshape(len(scales), -1, integers.shape[1]).astype(np.float32)
    groups -= zeros[:, None]
    groups *= scales[:, None]
    return np.ascontiguousarray(groups.reshape(integers.shape).T).reshape(-1)


def _grid(content: np.ndarray, record: TensorRecord) -> Grid:
    along_inputs, zeros, scales, _, one_less, first = record.packed
    words = content.view(np.uint32)
    if along_inputs:
        integers = _along_rows(words.reshape(record.shape[1] // 8, -1))
    else:
        integers = _along_columns(words.reshape(record.shape[1], -1), _AWQ_SHIFTS)
    order = _SHIFTS if along_inputs else _AWQ_SHIFTS
    points = _along_columns(_bytes(zeros).view(np.uint32).reshape(zeros.shape), order)
    factors = _bytes(scales).view(_FLOATS[scales.dtype]).astype(np.float32).reshape(scales.shape)
    if not np.isfinite(factors).all():
        raise CheckpointError(
            "scales of packed integers hold NaN or infinity",
            got=f"'{scales.file}' at byte {scales.offset}",
            fix="use an undamaged checkpoint",
        )
    columns = slice(first, first + record.shape[0])
    return Grid(integers[:, columns], factors[:, columns], points[:, columns] + np.uint8(one_less))


def _along_columns(words: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Words [n, m] whose eight values are neighbours in a row: [n, 8 m] u8."""
    return ((words[..., None] >> shifts) & 15).astype(np.uint8).reshape(len(words), -1)


def _along_rows(words: np.ndarray) -> np.ndarray:
    """Words [n, m] whose eight values are neighbours in a column: [8 n, m] u8."""
    return ((words[:, None] >> _SHIFTS[:, None]) & 15).astype(np.uint8).reshape(-1, words.shape[1])


def _bytes(record: TensorRecord) -> np.ndarray:
    """All bytes of a tensor."""
    with record.file.open("rb", buffering=0) as file:
        file.seek(record.offset)
        content = np.empty(record.nbytes, np.uint8)
        if file.readinto(memoryview(content)) != content.nbytes:
            raise CheckpointError("truncated weight file", got=f"'{record.file}' ends inside a tensor")
    return content
