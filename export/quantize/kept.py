"""Integers that a checkpoint holds already, kept bit for bit.

In: a weight whose tensors a file keeps in blocks of one scale each (Q8_0 and Q4_0 of GGUF files), or in
groups with a scale and zero point each (AWQ, GPTQ). Out: the same integers and scales in the layout of
a bundle, so that nothing is rounded twice.
"""

import numpy as np

from firp.export.families.names import PLAIN
from firp.export.quantize.formats import Integers
from firp.export.sources.checkpoint import Weight
from firp.export.sources.tensor_record import TensorRecord
from firp.export.weights.packed_integers import read_grid
from firp.export.weights.stream import rows_in_order
from firp.runtime.bundle.precision import BLOCK, BLOCKS4, BLOCKS8

_FORMATS = {"Q8_0": BLOCKS8, "Q4_0": BLOCKS4}
_SCALE_BYTES = 2
_MIDDLE = 8  # of Q4_0: what stands for 0
_VALUES = 16  # of four bits


def kept_format(weight: Weight, tensors: dict[str, TensorRecord]) -> str | None:
    """The format of a weight that can be kept; None where it has to be rounded."""
    records = [tensors[source] for source in weight.sources]
    if all(record.packed for record in records):
        return BLOCKS4 if weight.layout == PLAIN and all(map(_fits_blocks, records)) else None
    kinds = {record.blocks for record in _pieces(weight, tensors)}
    return _FORMATS.get(kinds.pop()) if len(kinds) == 1 else None


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
    integers, scales = (np.concatenate(side) for side in zip(*parts, strict=True))  # [out, in], [out, n]
    scale = np.ascontiguousarray(scales.T)
    middle = np.full(scale.shape, _MIDDLE if integers.dtype == np.uint8 else 0, integers.dtype)
    return Integers(np.ascontiguousarray(integers.T), scale, middle)


def _of_groups(records: list[TensorRecord]) -> Integers:
    """Groups as the blocks that they consist of, which share a scale and a zero point."""
    parts = []
    for record in records:
        grid = read_grid(record)
        blocks = record.packed.group // BLOCK
        parts.append((grid.integers, np.repeat(grid.scales, blocks, 0), np.repeat(grid.zeros, blocks, 0)))
    return Integers(*(np.concatenate(side, axis=1) for side in zip(*parts, strict=True)))


def _read(record: TensorRecord) -> tuple[np.ndarray, np.ndarray]:
    """Integers [out, in] and scales [out, in / BLOCK] f32 of one tensor, in Hugging Face's order."""
    with record.file.open("rb") as file:
        file.seek(record.offset)
        content = np.frombuffer(file.read(record.nbytes), np.uint8)
    out, size = record.shape
    content = content.reshape(out, size // BLOCK, -1)
    scales = np.ascontiguousarray(content[..., :_SCALE_BYTES]).view(np.float16)[..., 0].astype(np.float32)
    packed = content[..., _SCALE_BYTES:]
    if record.blocks == "Q8_0":
        integers = packed.view(np.int8)
    else:
        integers = np.concatenate((packed & 0xF, packed >> 4), -1)
    integers = integers.reshape(out, size)
    if record.paired_heads:
        integers, scales = (_unpaired(values, record.paired_heads) for values in (integers, scales))
    return integers, scales


def _unpaired(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, len(rows) // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)
