"""Where one tensor of a checkpoint lies, and how its bytes become values."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Scaling(NamedTuple):
    """How small floats of a matrix become values: each times the scale of the block that it lies in."""

    codes: str  # "float8" (E4M3), a byte each; "float4" (E2M1), two a byte, the lower bits first
    scales: "TensorRecord"  # [rows / block, columns / block], rounded up; uint8: powers of two, less 127
    block: tuple[int, int]  # rows and columns of the matrix as it lies in the file
    first: int = 0  # row of the scaled matrix at which this part of it begins
    transposed: bool = False  # the file's rows are the tensor's columns


class Packed(NamedTuple):
    """How integers of four bits, eight in an int32, become the values of a matrix [out, in]: each less
    the zero point of its group of inputs, times the scale of that group.
    """

    along_inputs: bool  # eight inputs of an output lie together (GPTQ), or eight outputs of an input (AWQ)
    zeros: "TensorRecord"  # [groups, out / 8] int32
    scales: "TensorRecord"  # [groups, out]
    group: int  # inputs of a group
    zeros_less_one: bool  # the file's zero points are one less
    first: int = 0  # row of the whole matrix at which this part of it begins


class TensorRecord(NamedTuple):
    """The place of one tensor in a file. `offset` counts bytes from the beginning of the file."""

    file: Path
    dtype: str  # of its values as they are read; float32 where the file keeps them in blocks
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    # GGUF's name of the blocks that the file keeps ("Q4_1"); None: its values lie there as they are
    blocks: str | None = None
    # of a GGUF file, whose rows stand in pairs that rotary embedding turns: heads that the rows are of
    paired_heads: int | None = None
    one_more: bool = False  # the file holds the values plus 1
    scaling: Scaling | None = None  # of small floats that lie beside their scales
    packed: Packed | None = None  # of integers that lie beside their scales and zero points
    # of what a file keeps in several tensors, or in rows of another order: one behind the other, or
    parts: "tuple[TensorRecord, ...]" = ()
    woven: bool = False  # their rows by turns
    turned: bool = False  # the file's rows are the tensor's columns

    @property
    def storage(self) -> str:
        """What the file holds: a type of values, or of blocks."""
        if self.parts:
            return self.parts[0].storage
        if self.packed:
            return "int4"
        return self.scaling.codes if self.scaling else self.blocks or self.dtype

    def rows(self, start: int, stop: int) -> "TensorRecord":
        """Some rows of a tensor, which must not be of heads whose rows are in pairs, and of its turned
        parts all or none.
        """
        if (start, stop) == (0, self.shape[0]):
            return self
        if self.parts:
            return self._rows_of_parts(start, stop)
        if self.packed:
            shape = (stop - start, *self.shape[1:])
            return self._replace(shape=shape, packed=self.packed._replace(first=self.packed.first + start))
        row = self.nbytes // self.shape[0]
        part = self._replace(
            shape=(stop - start, *self.shape[1:]),
            offset=self.offset + start * row,
            nbytes=(stop - start) * row,
        )
        if self.scaling is None:
            return part
        return part._replace(scaling=self.scaling._replace(first=self.scaling.first + start))

    def _rows_of_parts(self, start: int, stop: int) -> "TensorRecord":
        if self.woven:
            count = len(self.parts)
            return joined([part.rows(start // count, stop // count) for part in self.parts], woven=True)
        found, at = [], 0
        for part in self.parts:
            first, last = max(start - at, 0), min(stop - at, part.shape[0])
            found += [part.rows(first, last)] if first < last else []
            at += part.shape[0]
        return joined(found)

    def apart(self, count: int) -> "list[TensorRecord]":
        """The tensors that are stacked in this one along its first axis, or joined along it."""
        rows = self.shape[0] // count
        parts = [self.rows(index * rows, (index + 1) * rows) for index in range(count)]
        if rows == 1:
            parts = [part._replace(shape=self.shape[1:]) for part in parts]
        if self.scaling is None or len(self.scaling.scales.shape) < 3:
            return parts
        scales = self.scaling.scales.apart(count)
        return [
            part._replace(scaling=self.scaling._replace(scales=each))
            for part, each in zip(parts, scales, strict=True)
        ]

    @property
    def transposed(self) -> bool:
        """Whether the file's rows are the tensor's columns."""
        return self.turned or (self.scaling is not None and self.scaling.transposed)

    def as_it_lies(self) -> "TensorRecord":
        """The matrix whose rows are the file's."""
        if not self.transposed:
            return self
        if self.turned:
            return self._replace(shape=self.shape[::-1], turned=False)
        return self._replace(shape=self.shape[::-1], scaling=self.scaling._replace(transposed=False))

    @property
    def file_columns(self) -> int:
        """Values of a row of a matrix as it lies in the file."""
        return self.shape[-2] if self.transposed else self.shape[-1]


def joined(parts: Sequence[TensorRecord], woven: bool = False) -> TensorRecord:
    """One tensor of the rows of several, one behind the other, or woven: row by row by turns."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    kinds = {part.dtype for part in parts}
    return TensorRecord(
        first.file,
        first.dtype if len(kinds) == 1 else "float32",
        (sum(part.shape[0] for part in parts), *first.shape[1:]),
        first.offset,
        sum(part.nbytes for part in parts),
        parts=tuple(parts),
        woven=woven,
    )
