"""The container: metadata and the places of tensors in GGUF files. No tensor is read.

In: a file, and the other parts of one that was split. Out: `GgufFile`. Little-endian files of
versions 2 and 3 are read. Nothing in a file is believed before it is checked against the file's size.
"""

import math
import mmap
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from firp.export.sources.gguf.blocks import BLOCKS, block_sizes
from firp.export.sources.tensor_record import TensorRecord
from firp.runtime.bundle.dtypes import DTYPES, MODEL_DTYPES
from firp.runtime.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # of tensors, where the metadata names no other
_MOST_ITEMS = 1 << 22  # of an array; vocabularies and their merges have a tenth of that
_MOST_DIMENSIONS = 4
# GGUF's numbers of value types -> struct's and numpy's letters
_SCALARS = dict(enumerate("BbHhIif")) | {7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PLAIN = {DTYPES[name].safetensors: name for name in MODEL_DTYPES}  # GGUF calls them the same
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_AGAIN = "download the file again"


class GgufFile(NamedTuple):
    """What the headers say."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorRecord]  # by GGUF's names
    lists: dict[str, TensorRecord]  # arrays of the metadata that hold float32


def read_gguf_file(path: Path) -> GgufFile:
    """Read the header of a file, and those of its other parts if it was split. Raises CheckpointError
    for a file that is damaged or not GGUF, a type that is not read, and a part that is missing.
    """
    found = _read_header(path)
    count = found.metadata.get("split.count", 1)
    if count in (0, 1):  # 0 is what joining the parts of a file leaves
        return found
    named = _PART.fullmatch(path.name)
    if named is None or int(named["count"]) != count:
        raise CheckpointError(
            "one part of a split model under another name",
            got=f"'{path}'",
            expected=f"NAME-00001-of-{count:05}.gguf" if isinstance(count, int) else "a count of parts",
        )
    parts = [path.with_name(f"{named['stem']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise CheckpointError(
            f"{len(missing)} of {count} parts are missing", got=f"no '{missing[0]}'", fix="download all parts"
        )
    headers = [_read_header(part) for part in parts]
    tensors: dict[str, TensorRecord] = {}
    for part, header in zip(parts, headers, strict=True):
        if header.metadata.get("split.count") != count or header.tensors.keys() & tensors.keys():
            raise CheckpointError("part of another model", got=f"'{part}'", fix="download all parts again")
        tensors |= header.tensors
    total = headers[0].metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise CheckpointError(
            "parts without some tensors", got=f"{len(tensors)} in {count} parts", expected=total, fix=_AGAIN
        )
    return GgufFile(headers[0].metadata, tensors, headers[0].lists)


def _read_header(path: Path) -> GgufFile:
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start[:4] != _MAGIC:
                raise CheckpointError(
                    "not a GGUF file", got=f"'{path}' begins with {start[:4]!r}", expected=f"{_MAGIC!r}"
                )
            _check_version(path, start[4:])
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Header(path, content).read()
    except OSError as error:
        raise CheckpointError("cannot read", got=f"'{path}': {error.strerror}") from error


def _check_version(path: Path, word: bytes) -> None:
    version = int.from_bytes(word, "little")
    if len(word) < 4:
        raise CheckpointError("truncated GGUF file", got=f"{4 + len(word)} bytes in '{path}'", fix=_AGAIN)
    if int.from_bytes(word, "big") in (1, *_VERSIONS):
        raise CheckpointError("big-endian GGUF file", got=f"'{path}'", expected="a little-endian one")
    if version not in _VERSIONS:
        raise CheckpointError(
            "unsupported GGUF version",
            got=f"{version} in '{path}'",
            expected=" or ".join(map(str, _VERSIONS)),
            fix="convert the model again with a current llama.cpp",
        )


class _Header:
    """A place in the header of a mapped file, moved on by what is read."""

    def __init__(self, path: Path, content: mmap.mmap):
        self.path = path
        self.content = content
        self.at = 8  # behind magic and version
        self.lists: dict[str, TensorRecord] = {}

    def read(self) -> GgufFile:
        tensor_count, value_count = self._scalar("Q"), self._scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(self._count(value_count, 13)):
            key = self._string()
            if key in metadata:
                raise self._damaged(f"{key} twice")
            metadata[key] = self._value(key, self._scalar("I"))
        places: dict[str, tuple] = {}
        for _ in range(self._count(tensor_count, 24)):
            name = self._string()
            if name in places:
                raise self._damaged(f"{name} twice")
            dimensions = self._scalar("I")
            if dimensions > _MOST_DIMENSIONS:
                raise self._damaged(f"{name} of {dimensions} dimensions")
            shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
            places[name] = (shape, self._scalar("I"), self._scalar("Q"))
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment {alignment!r:.40}")
        start = -(-self.at // alignment) * alignment
        tensors = {name: self._record(name, start, *place) for name, place in places.items()}
        self._check_places(tensors)
        return GgufFile(metadata, tensors, self.lists)

    def _record(
        self, name: str, start: int, shape: tuple[int, ...], number: int, offset: int
    ) -> TensorRecord:
        kind = _type_name(number)
        size = math.prod(shape)
        if kind in _PLAIN:
            dtype = _PLAIN[kind]
            return TensorRecord(self.path, dtype, shape, start + offset, size * DTYPES[dtype].itemsize)
        if kind not in BLOCKS:
            raise CheckpointError(
                f"unsupported type of {name}",
                got=f"{kind} in '{self.path}'",
                expected="one of " + ", ".join((*_PLAIN, *BLOCKS)),
            )
        block = block_sizes(kind)
        if not shape or shape[-1] % block.values:
            raise self._damaged(f"{name} of shape {list(shape)} in blocks of {block.values}")
        nbytes = size // block.values * block.nbytes
        return TensorRecord(self.path, "float32", shape, start + offset, nbytes, kind)

    def _check_places(self, tensors: dict[str, TensorRecord]) -> None:
        reached = self.at
        for name, record in sorted(tensors.items(), key=lambda item: item[1].offset):
            if record.offset < reached:
                raise self._damaged(f"{name} overlaps what stands before it")
            reached = record.offset + record.nbytes
        if reached > len(self.content):
            raise self._truncated(f"{reached} bytes")

    def _value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(self._letter(kind))
        kind, length = self._scalar("I"), self._scalar("Q")
        if length > _MOST_ITEMS:
            raise self._damaged(f"an array of {length} items")
        if kind == _STRING:
            return [self._string() for _ in range(self._count(length, 8))]
        dtype = np.dtype(self._letter(kind)).newbyteorder("<")
        if dtype == np.float32:
            self.lists[key] = TensorRecord(self.path, "float32", (length,), self.at, 4 * length)
        return np.frombuffer(self._bytes(length * dtype.itemsize), dtype).tolist()

    def _letter(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self._damaged(f"a value of type {kind}")
        return _SCALARS[kind]

    def _scalar(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self._bytes(struct.calcsize("<" + letter)))[0]

    def _string(self) -> str:
        try:
            return self._bytes(self._scalar("Q")).decode()
        except UnicodeDecodeError as error:
            raise self._damaged("a text that is not UTF-8") from error

    def _bytes(self, count: int) -> bytes:
        """The next bytes. Nothing is allocated for more than the file holds."""
        if count > len(self.content) - self.at:
            raise self._truncated(f"{self.at + count} bytes")
        self.at += count
        return self.content[self.at - count : self.at]

    def _count(self, count: int, least: int) -> int:
        """A number of things of at least so many bytes each, which the rest of the file can hold."""
        if count > (len(self.content) - self.at) // least:
            raise self._truncated(f"{count} entries of its header")
        return count

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError("damaged GGUF file", got=f"{what} in '{self.path}'", fix=_AGAIN)

    def _truncated(self, expected: str) -> CheckpointError:
        got = f"{len(self.content)} bytes in '{self.path}'"
        return CheckpointError("truncated GGUF file", got=got, expected=expected, fix=_AGAIN)


def _type_name(number: int) -> str:
    import gguf

    try:
        return gguf.GGMLQuantizationType(number).name
    except ValueError:
        return f"type {number}"
