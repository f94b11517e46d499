"""Streams weights from a checkpoint's files to a safetensors file, a few megabytes at a time.

In: the bundle's `Weight` list and the checkpoint's tensor table. Out: a safetensors file and where
in it each weight lies. Decoding, joins, dtype conversion and the check for NaN happen on the way;
nothing larger than a chunk is ever in memory.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from firp.export.families.names import Layout, Order
from firp.export.sources.checkpoint import Weight
from firp.export.sources.gguf.blocks import block_sizes, dequantize
from firp.export.sources.tensor_record import TensorRecord
from firp.export.weights.packed_integers import unpacked
from firp.export.weights.small_floats import decoded_floats, powers_of_two
from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.errors import CheckpointError

_CHUNK_BYTES = 8 << 20


def numpy_dtype(name: str) -> np.dtype:
    """A type that numpy computes with; the runtime knows bfloat16 by its bits alone."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else DTYPES[name].storage


class Output(NamedTuple):
    """One tensor to write: `chunks` yields its values in order, in any dtype."""

    name: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[np.ndarray]]
    # to write it in; None: that of the file. "uint4" stands for packed values: `chunks` yields bytes
    dtype: str | None = None

    def nbytes(self, dtype: str) -> int:
        """Bytes of it in a file of that dtype."""
        count = math.prod(self.shape)
        return count // 2 if self.dtype == "uint4" else count * DTYPES[self.dtype or dtype].itemsize

    def stored(self, dtype: str) -> str:
        """The type that its bytes have in such a file."""
        return "uint8" if self.dtype == "uint4" else self.dtype or dtype


def from_checkpoint(weight: Weight, tensors: dict[str, TensorRecord]) -> Output:
    """An output of tensors of a checkpoint."""
    return Output(weight.name, weight.shape, lambda: weight_chunks(weight, tensors))


def weight_chunks(weight: Weight, tensors: dict[str, TensorRecord]) -> Iterator[np.ndarray]:
    """A weight's values, flat and in order. Raises CheckpointError for a value that is not finite."""
    layout = weight.layout
    if layout.ones:
        yield np.ones(weight.shape, np.float32).reshape(-1)
    for source in weight.sources:
        record = tensors[source].as_it_lies()
        turned = layout.transposed != tensors[source].transposed
        if turned or layout.alternating:
            whole = np.concatenate(list(read_chunks(source, record))).reshape(record.shape)
            whole = whole.T if turned else whole
            halves = [whole[::2], whole[1::2]] if layout.alternating else [whole]
            yield np.concatenate(halves).reshape(-1)
            continue
        for rows in rows_in_order(record, layout):
            for chunk in read_chunks(source, rows):
                yield chunk.astype(np.float32) + np.float32(1) if layout.plus_one else chunk


def rows_in_order(record: TensorRecord, layout: Layout) -> Iterator[TensorRecord]:
    """Runs of a tensor's rows in the order of the weight."""
    if layout.skipped:
        yield record.rows(layout.skipped, record.shape[0])
    elif layout.order:
        size = record.shape[0] // (layout.blocks or len(layout.order))
        yield from (record.rows(first * size, last * size) for first, last in _runs(layout.order))
    else:
        yield record


def _runs(order: Order) -> Iterator[tuple[int, int]]:
    """Blocks that follow each other, as the first of them and what comes after the last."""
    first = before = order[0]
    for block in order[1:]:
        if block != before + 1:
            yield first, before + 1
            first = block
        before = block
    yield first, before + 1


def to_sources(weight: Weight, values: np.ndarray, tensors: dict[str, TensorRecord]) -> list[np.ndarray]:
    """What the tensors of a weight hold where the weight holds these values: `weight_chunks` undone."""
    layout = weight.layout
    if layout.plus_one:
        values = values - 1
    if layout.order:
        blocks = values.reshape(len(layout.order), -1, *values.shape[1:])
        values = blocks[np.argsort(layout.order)].reshape(values.shape)
    if layout.alternating:
        values = np.stack(np.split(values, 2), 1).reshape(values.shape)
    if layout.transposed:
        values = values.T
    ends = np.cumsum([tensors[source].shape[0] for source in weight.sources])[:-1]
    return [np.ascontiguousarray(part) for part in np.split(values, ends)]


def from_array(name: str, array: np.ndarray) -> Output:
    """An output that holds an array."""
    return Output(name, array.shape, lambda: iter([array.reshape(-1)]))


def size_bytes(outputs: list[Output], dtype: str) -> int:
    """Bytes of these outputs in a dtype."""
    return sum(output.nbytes(dtype) for output in outputs)


def read_chunks(name: str, record: TensorRecord) -> Iterator[np.ndarray]:
    """A tensor's values, flat, in its own dtype. Raises CheckpointError for a value that is not
    finite.
    """
    if record.turned:
        lying = record.as_it_lies()
        yield np.concatenate(list(read_chunks(name, lying))).reshape(lying.shape).T.reshape(-1)
        return
    if record.parts:
        parts = (read_chunks(name, part) for part in record.parts)
        yield from _woven(name, record) if record.woven else itertools.chain.from_iterable(parts)
        return
    values_bytes = math.prod(record.shape) * numpy_dtype(record.dtype).itemsize
    yield from _read(name, record, _CHUNK_BYTES * record.nbytes // max(1, values_bytes))


def _woven(name: str, record: TensorRecord) -> Iterator[np.ndarray]:
    """Rows of the parts by turns, as many at once as a chunk holds."""
    count, width = record.parts[0].shape[0], math.prod(record.shape[1:])
    step = max(1, _CHUNK_BYTES // (width * len(record.parts) * 4))
    for start in range(0, count, step):
        some = [part.rows(start, min(count, start + step)) for part in record.parts]
        rows = [np.concatenate(list(read_chunks(name, part))).reshape(-1, width) for part in some]
        yield np.stack(rows, 1).reshape(-1)


def read_array(weight: Weight, tensors: dict[str, TensorRecord]) -> np.ndarray:
    """A whole weight in float32. Raises CheckpointError for a value that is not finite."""
    chunks = weight_chunks(weight, tensors)
    return np.concatenate([chunk.astype(np.float32) for chunk in chunks]).reshape(weight.shape)


def first_values(name: str, record: TensorRecord, count: int) -> np.ndarray:
    """The first values of a tensor, `count` or all that there are, in its own dtype; of one that lies
    transposed, the first of the file. Raises CheckpointError for a value that is not finite.
    """
    if record.packed:
        return _first_inputs(record, count)
    record = record.as_it_lies()
    if record.parts:
        values = itertools.chain.from_iterable(read_chunks(name, record))
        return np.fromiter(itertools.islice(values, count), np.float32)
    step = -(-count * record.nbytes // max(1, math.prod(record.shape)))
    return next(_read(name, record, step), np.empty(0, numpy_dtype(record.dtype)))[:count]


def _first_inputs(record: TensorRecord, count: int) -> np.ndarray:
    """The first values of a packed tensor as the file has them: of its first inputs."""
    size = min(record.shape[1], 8 * -(-count // (8 * record.shape[0])))
    packed = record.packed
    first = record._replace(
        shape=(record.shape[0], size),
        nbytes=record.nbytes // record.shape[1] * size,
        packed=packed._replace(zeros=packed.zeros.rows(0, 1), scales=packed.scales.rows(0, 1)),
    )
    (values,) = _read("a packed tensor", first, record.nbytes)
    return values[:count]


def _read(name: str, record: TensorRecord, step: int) -> Iterator[np.ndarray]:
    """Values of about `step` bytes of the file at a time: of whole units, at least one."""
    unit = _unit_bytes(record)
    step = max(1, -(-step // unit)) * unit
    with record.file.open("rb", buffering=0) as file:
        file.seek(record.offset)
        for start in range(0, record.nbytes, step):
            content = np.empty(min(step, record.nbytes - start), np.uint8)
            if file.readinto(memoryview(content)) != content.nbytes:
                raise CheckpointError("truncated weight file", got=f"'{record.file}' ends inside {name}")
            if record.packed:
                chunk = unpacked(content, record)
            else:
                chunk = _scaled(content, record, start) if record.scaling else _decode(content, record)
            if not _finite(chunk, record.dtype):
                raise CheckpointError(
                    f"{name} holds NaN or infinity", got=f"'{record.file}'", fix="use an undamaged checkpoint"
                )
            yield chunk


def _unit_bytes(record: TensorRecord) -> int:
    """Bytes of the smallest piece of a tensor that can be decoded alone."""
    if record.packed:
        return record.nbytes
    if record.scaling:
        return record.nbytes if record.transposed else record.nbytes // record.shape[0]
    if record.paired_heads:
        return record.nbytes // record.paired_heads
    return block_sizes(record.blocks).nbytes if record.blocks else numpy_dtype(record.dtype).itemsize


def _decode(content: np.ndarray, record: TensorRecord) -> np.ndarray:
    """Values of whole units, flat and in Hugging Face's order."""
    values = dequantize(content, record.blocks) if record.blocks else content.view(numpy_dtype(record.dtype))
    if record.paired_heads:
        rows = record.shape[0] // record.paired_heads
        width = math.prod(record.shape[1:])
        values = values.reshape(-1, rows // 2, 2, width).swapaxes(1, 2).reshape(-1)
    return values - 1 if record.one_more else values


def _scaled(content: np.ndarray, record: TensorRecord, start: int) -> np.ndarray:
    """Values of whole rows of small floats that begin at byte `start` of the matrix."""
    codes, scales, (height, width), first, transposed = record.scaling
    columns = record.file_columns
    values = decoded_floats(content, codes).reshape(-1, columns)
    rows = np.arange(len(values)) + first + start // (content.nbytes // len(values))
    blocks = rows // height
    used = scales.rows(int(blocks[0]), int(blocks[-1]) + 1)
    factors = np.concatenate(list(_read(f"a scale of {record.file.name}", used, _CHUNK_BYTES)))
    factors = powers_of_two(factors) if scales.dtype == "uint8" else factors.astype(np.float32)
    factors = np.repeat(factors.reshape(used.shape), width, 1)[:, :columns]
    with np.errstate(invalid="ignore"):  # which `_read` names
        values *= factors[blocks - blocks[0]]
    return (values.T if transposed else values).reshape(-1)


def _finite(chunk: np.ndarray, dtype: str) -> bool:
    exponent = DTYPES[dtype].exponent
    return not exponent or not ((chunk.view(f"u{chunk.itemsize}") & exponent) == exponent).any()


def write_safetensors(
    path: Path, outputs: list[Output], dtype: str, progress: Callable[[int], None] | None = None
) -> dict[str, TensorRecord]:
    """Write all outputs, as `dtype` where they name none; returns where each one lies. `progress` is
    told the bytes written so far.

    Raises CheckpointError when a finite value does not fit the dtype (float16 ends at 65504).
    """
    records = {}
    entries = {}
    offset = 0
    # larger values first, so that each begins at a multiple of its size
    for output in sorted(outputs, key=lambda output: -DTYPES[output.stored(dtype)].itemsize):
        nbytes = output.nbytes(dtype)
        records[output.name] = TensorRecord(path, output.dtype or dtype, tuple(output.shape), offset, nbytes)
        entries[output.name] = {
            "dtype": DTYPES[output.stored(dtype)].safetensors,
            "shape": [nbytes] if output.dtype == "uint4" else list(output.shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    header += b" " * (-(len(header) + 8) % 4096)  # data begins on a page
    start = 8 + len(header)
    written = 0
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for output in outputs:
            file.seek(start + records[output.name].offset)
            for chunk in output.chunks():
                chunk = _converted(output.name, chunk, output.stored(dtype))
                file.write(memoryview(chunk.view(np.uint8)))
                written += chunk.nbytes
                if progress:
                    progress(written)
    return {name: record._replace(offset=start + record.offset) for name, record in records.items()}


def _converted(name: str, chunk: np.ndarray, dtype: str) -> np.ndarray:
    target = numpy_dtype(dtype)
    if chunk.dtype == target:
        return chunk
    with np.errstate(over="ignore"):
        chunk = chunk.astype(target)
    if not _finite(chunk, dtype):
        raise CheckpointError(f"{name} does not fit {dtype}", fix="export with --dtype bfloat16 or float32")
    return chunk
