"""Graphs as ONNX files, to the byte, without the onnx package, which the runtime does not need.

In: a tape, what goes in and comes out, and where its weights lie. Out: the content of the file. The
wire format is that of Protocol Buffers (protobuf.dev/programming-guides/encoding), the numbers of
fields are those of onnx.proto; fields stand in the order of their numbers.
"""

import functools
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.graph_spec import GraphSpec
from firp.runtime.bundle.graphs.tape import Branch, Constant, Node, Tape

OPSET = 24
IR_VERSION = 11
_EXTERNAL = 1  # TensorProto.EXTERNAL
_FLOAT, _INT, _STRING, _GRAPH, _INTS = 1, 2, 3, 5, 7  # AttributeProto.AttributeType
_UINT4 = 21  # TensorProto.UINT4, two values a byte


class StoredWeight(NamedTuple):
    """The place of one weight in a file. `offset` counts bytes from the beginning of the file."""

    file: str  # its name in the bundle
    dtype: str  # a name in DTYPES, or "uint4"
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def onnx_file(spec: GraphSpec, tape: Tape, weights: dict[str, StoredWeight]) -> bytes:
    """The file of one graph. weights: those that it uses, in the order of their use."""
    _name_values(tape.nodes)
    held = [(_constant(constant), _described(*_typed(constant))) for constant in tape.constants]
    inside = {name for branch in _branches(tape.nodes) for name in branch.weights}
    held += [
        (_external(name, weight), _described(name, *weight[1:3]))
        for name, weight in weights.items()
        if name not in inside
    ]
    graph = [
        *(_field(1, _node(index, node, weights)) for index, node in enumerate(tape.nodes)),
        _text(2, spec.name),
        *(_field(5, initializer) for initializer, _ in held),
        *(_field(11, _described(tensor.name, tensor.dtype, tensor.shape)) for tensor in spec.inputs),
        *(_field(12, _described(tensor.name, tensor.dtype, tensor.shape)) for tensor in spec.outputs),
        *(_field(13, described) for _, described in held),
    ]
    opset = _text(1, "") + _int(2, OPSET)
    return _int(1, IR_VERSION) + _text(2, "firp") + _field(7, b"".join(graph)) + _field(8, opset)


def _name_values(nodes: Iterable[Node], count: int = 0) -> int:
    """Name values that have no name; return how many names there are."""
    for node in nodes:
        for branch in node.attributes.values():
            if isinstance(branch, Branch):
                count = _name_values(branch.nodes, count)
        for value in node.outputs:
            if value.name is None:
                value.name = f"val_{count}"
                count += 1
    return count


def _branches(nodes: Iterable[Node]) -> Iterator[Branch]:
    """All branches of nodes, and of the nodes inside these."""
    for node in nodes:
        for branch in node.attributes.values():
            if isinstance(branch, Branch):
                yield branch
                yield from _branches(branch.nodes)


def _node(index: int, node: Node, weights: dict[str, StoredWeight]) -> bytes:
    inputs = b"".join([_text(1, value.name) for value in node.inputs])
    outputs = b"".join([_text(2, value.name) for value in node.outputs])
    attributes = b"".join(
        [
            _branch(name, value, weights)
            if isinstance(value, Branch)
            else _attribute(name, tuple(value) if isinstance(value, list) else value)
            for name, value in node.attributes.items()
        ]
    )
    return inputs + outputs + _text(3, f"node_{node.op_type}_{index}") + _text(4, node.op_type) + attributes


@functools.lru_cache(maxsize=1 << 12, typed=True)
def _attribute(name: str, value: int | float | str | tuple[int, ...]) -> bytes:
    if isinstance(value, float):
        content = _float(2, value) + _int(20, _FLOAT)
    elif isinstance(value, str):
        content = _text(4, value) + _int(20, _STRING)
    elif isinstance(value, int):
        content = _int(3, value) + _int(20, _INT)
    else:
        content = b"".join([_int(8, each) for each in value]) + _int(20, _INTS)
    return _field(5, _text(1, name) + content)


def _branch(name: str, branch: Branch, weights: dict[str, StoredWeight]) -> bytes:
    graph = [
        *(_field(1, _node(index, node, weights)) for index, node in enumerate(branch.nodes)),
        _text(2, name),
        *(_field(5, _external(weight, weights[weight])) for weight in branch.weights),
        _field(12, _described(branch.output.name, branch.dtype, branch.shape)),
    ]
    return _field(5, _text(1, name) + _field(6, b"".join(graph)) + _int(20, _GRAPH))


def _typed(constant: Constant) -> tuple[str, str, tuple[int, ...]]:
    return constant.value.name, constant.dtype, constant.content.shape


def _constant(constant: Constant) -> bytes:
    name, dtype, shape = _typed(constant)
    return _tensor(dtype, shape, name) + _field(9, constant.content.tobytes())


def _external(name: str, weight: StoredWeight) -> bytes:
    entries = (("location", weight.file), ("offset", weight.offset), ("length", weight.nbytes))
    pairs = [_field(13, _text(1, key) + _text(2, str(value))) for key, value in entries]
    return _tensor(weight.dtype, weight.shape, name) + b"".join(pairs) + _int(14, _EXTERNAL)


def _tensor(dtype: str, shape: Sequence[int], name: str) -> bytes:
    return b"".join([_int(1, size) for size in shape]) + _int(2, _number(dtype)) + _text(8, name)


def _described(name: str, dtype: str, shape: Sequence[int | str]) -> bytes:
    """A ValueInfoProto: a name, a type, and sizes, or letters that stand for them."""
    sizes = [_field(1, _text(2, size) if isinstance(size, str) else _int(1, size)) for size in shape]
    return _text(1, name) + _field(2, _field(1, _int(1, _number(dtype)) + _field(2, b"".join(sizes))))


def _number(dtype: str) -> int:
    return _UINT4 if dtype == "uint4" else DTYPES[dtype].onnx_number


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)


def _int(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value & (2**64 - 1))


@functools.lru_cache(maxsize=1 << 14)
def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


@functools.lru_cache(maxsize=1 << 12)
def _varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; all but the last have their upper bit set."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
