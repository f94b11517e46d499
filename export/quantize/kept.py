"""Integers that a checkpoint holds already, kept bit for bit.

In: a weight whose tensors a file keeps in blocks of one scale each (Q8_0 and Q4_0 of GGUF files), of a
scale and a minimum (Q4_1, Q4_K), or in groups with a scale and zero point each (AWQ, GPTQ). Out: the
same integers and scales in the layout of a bundle, so that nothing is rounded twice.
"""

from typing import NamedTuple

import numpy as np

from firp.export.families.names import PLAIN
from firp.export.quantize.formats import Integers
from firp.export.sources.checkpoint import Weight
from firp.export.sources.gguf.blocks import block_sizes
from firp.export.sources.tensor_record import TensorRecord
from firp.export.weights.packed_integers import read_grid
from firp.export.weights.stream import rows_in_order
from firp.runtime.bundle.precision import BLOCK, BLOCKS4, BLOCKS8, FORMATS4, OFFSET_BLOCKS4

_FORMATS = {"Q8_0": BLOCKS8, "Q4_0": BLOCKS4, "Q4_1": OFFSET_BLOCKS4, "Q4_K": OFFSET_BLOCKS4}
_FINER = ("Q5_0", "Q5_1", "Q8_0", "Q5_K", "Q6_K")
_MIDDLE = 8  # of Q4_0: what stands for 0
_VALUES = 16  # of four bits


def kept_format(weight: Weight, tensors: dict[str, TensorRecord]) -> str | None:
    """The format of a weight that can be kept; None where it has to be rounded."""
    records = [tensors[source] for source in weight.sources]
    if all(record.packed for record in records):
        return BLOCKS4 if weight.layout == PLAIN and all(map(_fits_blocks, records)) else None
    forms = {_FORMATS.get(record.blocks) for record in _pieces(weight, tensors)}
    return forms.pop() if len(forms) == 1 else None


def in_4_bits(tensors: dict[str, TensorRecord]) -> bool:
    """Whether a file has matrices in blocks of 4 bits."""
    return any(_FORMATS.get(record.storage) in FORMATS4 for record in tensors.values())


def is_finer(weight: Weight, tensors: dict[str, TensorRecord]) -> bool:
    """Whether a file has a weight, or a part of it, in blocks of more than 4 bits."""
    return any(tensors[source].storage in _FINER for source in weight.sources)


def _pieces(weight: Weight, tensors: dict[str, TensorRecord]) -> list[TensorRecord]:
    """Runs of a file's rows that are the weight's, one behind the other; none where it has others."""
    layout = weight.layout
    sources = [tensors[source] for source in weight.sources]
    if layout.plus_one or layout.alternating or any(layout.transposed != each.transposed for each in sources):
        return []
    runs = [rows for each in sources for rows in rows_in_order(each.as_it_lies(), layout)]
    found = [piece for rows in runs for piece in (() if rows.woven else rows.parts or (rows,))]
    whole = sum(piece.shape[0] for piece in found) == weight.shape[0]
    return found if whole and not any(piece.turned or piece.parts for piece in found) else []


def _fits_blocks(record: TensorRecord) -> bool:
    """Whether groups are whole blocks, and their zero points of four bits."""
    return record.packed.group % BLOCK == 0 and read_grid(record).zeros.max() < _VALUES


def kept_integers(weight: Weight, tensors: dict[str, TensorRecord]) -> Integers:
    """The integers and scales of a weight that can be kept."""
    if tensors[weight.sources[0]].packed:
        return _of_groups([tensors[source] for source in weight.sources])
    parts = [_read(piece) for piece in _pieces(weight, tensors)]
    sides = (None if side[0] is None else np.concatenate(side) for side in zip(*parts, strict=True))
    integers, scale, minima = (None if side is None else np.ascontiguousarray(side.T) for side in sides)
    if minima is not None:
        return Integers(integers, scale, *_split(scale, minima))
    middle = np.full(scale.shape, _MIDDLE if integers.dtype == np.uint8 else 0, integers.dtype)
    return Integers(integers, scale, middle)


def _split(scales: np.ndarray, minima: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minima of blocks as zero points and offsets. The zero point is the nearest, so that little is
    left to the offset, whose digits err by as much as it is large. It is 0 where float32 does not hold
    what is left.
    """
    with np.errstate(all="ignore"):  # a scale may be 0
        zeros = np.rint(-minima / scales)
    zeros = np.clip(np.nan_to_num(zeros, nan=0), 0, _VALUES - 1)
    left = minima + zeros * scales.astype(np.float64)
    zeros = np.where(left == left.astype(np.float32), zeros, 0)
    return zeros.astype(np.uint8), (minima + zeros * scales.astype(np.float64)).astype(np.float32)


def _of_groups(records: list[TensorRecord]) -> Integers:
    """Groups as the blocks that they consist of, which share a scale and a zero point."""
    parts = []
    for record in records:
        grid = read_grid(record)
        blocks = record.packed.group // BLOCK
        parts.append((grid.integers, np.repeat(grid.scales, blocks, 0), np.repeat(grid.zeros, blocks, 0)))
    return Integers(*(np.concatenate(side, axis=1) for side in zip(*parts, strict=True)))


class _Blocks(NamedTuple):
    """A tensor's blocks in Hugging Face's order."""

    integers: np.ndarray  # [out, in] i8, or u8 of values up to 15
    scales: np.ndarray  # [out, in / BLOCK] f32
    minima: np.ndarray | None  # what the integer 0 stands for, as scales; None: not in the file


def _read(record: TensorRecord) -> _Blocks:
    with record.file.open("rb") as file:
        file.seek(record.offset)
        content = np.frombuffer(file.read(record.nbytes), np.uint8)
    content = content.reshape(-1, block_sizes(record.blocks).nbytes)
    out = record.shape[0]
    sides = (None if side is None else side.reshape(out, -1) for side in _SIDES[record.blocks](content))
    if not record.paired_heads:
        return _Blocks(*sides)
    return _Blocks(*(None if side is None else _unpaired(side, record.paired_heads) for side in sides))


def _q8_0(content: np.ndarray) -> tuple:
    return content[:, 2:].view(np.int8), _halves(content[:, :2]), None


def _q4_0(content: np.ndarray) -> tuple:
    return _nibbles(content[:, 2:]), _halves(content[:, :2]), None


def _q4_1(content: np.ndarray) -> tuple:
    return _nibbles(content[:, 4:]), _halves(content[:, :2]), _halves(content[:, 2:4])


def _q4_k(content: np.ndarray) -> tuple:
    """Eight blocks share two floats, of scales and of minima, whose factors have 6 bits."""
    import gguf

    factors, subtracted = gguf.quants.Q4_K.get_scale_min(content[:, 4:16])
    scales = _halves(content[:, :2]) * factors.astype(np.float32)
    minima = _halves(content[:, 2:4]) * subtracted.astype(np.float32)
    return _nibbles(content[:, 16:].reshape(len(content), -1, BLOCK)), scales, -minima


# of whole blocks [n, bytes]: integers, scales, minima
_SIDES = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q4_K": _q4_k}


def _halves(content: np.ndarray) -> np.ndarray:
    """Values f32 of float16 [n, bytes]."""
    return np.ascontiguousarray(content).view(np.float16).astype(np.float32)


def _nibbles(content: np.ndarray) -> np.ndarray:
    """Values of 4 bits, all lower halves of bytes [..., n] before the upper ones."""
    return np.concatenate((content & 0xF, content >> 4), -1)


def _unpaired(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, len(rows) // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)
