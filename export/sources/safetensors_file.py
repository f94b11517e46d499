"""Safetensors files: where every tensor of a checkpoint lies. Nothing but headers is read.

In: a folder with model.safetensors, or shards and their index. Out: tensor name -> `TensorRecord`.
The header is checked against the file: types, shapes, no holes, no overlaps, nothing missing at the
end.
"""

import json
import math
from pathlib import Path
from typing import Any

from firp.export.sources.tensor_record import TensorRecord
from firp.runtime.bundle.dtypes import DTYPES, MODEL_DTYPES
from firp.runtime.errors import CheckpointError

# of matrices that have scales beside them
_QUANTIZED = {"F8_E4M3": ("float8", 1), "U8": ("uint8", 1), "I32": ("int32", 4)}


def read_checkpoint_tensors(path: Path, quantized: bool = False) -> dict[str, TensorRecord]:
    """Tensors of a model folder by name. quantized: types of such matrices and their scales are taken too.
    Raises CheckpointError when a file is missing or damaged.
    """
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if not index.is_file():
        if not single.is_file():
            other = sorted(
                file.name for pattern in ("*.bin", "*.pt", "*.gguf") for file in path.glob(pattern)
            )
            raise CheckpointError(
                "no weights",
                got=f"'{path}' with {', '.join(other) or 'no weight file'}",
                expected="model.safetensors",
                fix="save the model with save_pretrained (transformers 5 writes safetensors)",
            )
        return read_safetensors(single, quantized=quantized)
    data = read_json(index)
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_file_name, weight_map.values())):
        raise CheckpointError(
            "bad weight index",
            got=f"'{index}'",
            expected="a weight_map of tensor names to file names beside it",
        )
    tensors: dict[str, TensorRecord] = {}
    for shard in sorted(set(weight_map.values())):
        if not (path / shard).is_file():
            raise CheckpointError(
                "missing shard", got=f"no '{path / shard}'", fix="download the checkpoint again"
            )
        found = read_safetensors(path / shard, quantized=quantized)
        listed = {name for name, file in weight_map.items() if file == shard}
        if found.keys() != listed:
            wrong = sorted(found.keys() ^ listed)
            raise CheckpointError(
                "shard and index disagree", got=f"{wrong[:3]} in '{path / shard}'", fix="download both again"
            )
        tensors |= found
    return tensors


def read_json(file: Path) -> Any:
    """Read a JSON file. Raises CheckpointError when it cannot be read."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError("cannot read JSON", got=f"'{file}': {error}") from error


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and value == Path(value).name and value not in ("", ".", "..")


def read_safetensors(
    file: Path, dtypes: tuple[str, ...] = MODEL_DTYPES, quantized: bool = False
) -> dict[str, TensorRecord]:
    """The tensor table of one safetensors file (format: 8-byte header length, JSON header, data),
    checked against its size. dtypes, quantized: what tensors may be.
    """
    known = {DTYPES[name].safetensors: (name, DTYPES[name].itemsize) for name in dtypes}
    known |= _QUANTIZED if quantized else {}
    size = file.stat().st_size
    fix = "download the file again"
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(
                "truncated weight file",
                got=f"{size} bytes in '{file}'",
                expected=f"over {length + 8}",
                fix=fix,
            )
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            entries = {name: _entry(item) for name, item in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                "not a safetensors file", got=f"'{file}': {error!r:.80}", fix=fix
            ) from error
    start = 8 + length
    tensors = {}
    reached = 0
    for name, (dtype, shape, begin, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if dtype not in known:
            raise CheckpointError(f"unsupported dtype of {name}", got=dtype, expected=" or ".join(known))
        kind, itemsize = known[dtype]
        nbytes = math.prod(shape) * itemsize
        if begin != reached or stop - begin != nbytes:  # the format allows no holes and no overlaps
            raise CheckpointError(
                f"bad place of {name} in '{file}'",
                got=f"bytes {begin} to {stop}",
                expected=f"{reached} to {reached + nbytes}",
                fix=fix,
            )
        tensors[name] = TensorRecord(file, kind, shape, start + begin, nbytes)
        reached = stop
    if size != start + reached:
        raise CheckpointError(
            "truncated weight file", got=f"{size} bytes in '{file}'", expected=start + reached, fix=fix
        )
    return tensors


def _entry(item: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, begin and end of one tensor in a safetensors header."""
    begin, stop = item["data_offsets"]
    shape = tuple(item["shape"])
    if not all(type(number) is int and number >= 0 for number in (begin, stop, *shape)):
        raise ValueError(f"bad numbers in {item}")
    return str(item["dtype"]), shape, begin, stop


def same_bytes(a: TensorRecord, b: TensorRecord) -> bool:
    """Tell whether two tensors of one dtype and shape hold the same bytes."""
    if a[1:3] != b[1:3]:
        return False
    with a.file.open("rb") as left, b.file.open("rb") as right:
        left.seek(a.offset)
        right.seek(b.offset)
        for done in range(0, a.nbytes, 1 << 24):
            step = min(1 << 24, a.nbytes - done)
            if left.read(step) != right.read(step):
                return False
    return True
