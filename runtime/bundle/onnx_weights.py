"""Files that an ONNX file refers to, read without the onnx package, which the runtime
does not need.

In: a graph's file. Out: how many bytes of the bundle's weight file it uses, or a BundleError: it
takes weights from another file, beyond the end of that file, or it holds what the exporter never
writes (operators that can run for ever, graphs within graphs). Everything that is not known is
refused. About 20 ms for the two halves of a model of 30 layers.

The wire format is that of Protocol Buffers (protobuf.dev/programming-guides/encoding), the fields
are those of onnx.proto. Where a field that is to be single comes twice, a reader takes the last
one or joins them: here every one of them must be good.
"""

from pathlib import Path
from typing import Any

from firp.runtime.errors import BundleError

# What the exporter writes: each computes its output once, so a graph of them ends.
OPERATORS = frozenset({
    "Abs", "Add", "Attention", "Cast", "Concat", "DequantizeLinear", "Expand", "Gather", "GatherND",
    "Gemm", "LogSoftmax", "MatMul", "MatMulInteger", "Mul", "QuantizeLinear", "RMSNormalization",
    "ReduceMax", "Reshape", "RotaryEmbedding", "Shape", "Sigmoid", "Split", "TensorScatter", "Tile",
    "TopK", "Transpose", "Unsqueeze",
})  # fmt: skip
MOST_BYTES = 64 << 20  # of a graph's file, its weights not counted

_INT = "int"
_INTS = "ints"
_FLOAT = "float"
_FLOATS = "floats"
_DOUBLES = "doubles"
_TEXT = "text"
_BYTES = "bytes"
_WIRE_TYPES = {  # of a value: 0 varint, 1 eight bytes, 2 length and content, 5 four bytes
    _INT: (0,),
    _INTS: (0, 2),
    _FLOAT: (5,),
    _FLOATS: (5, 2),
    _DOUBLES: (1, 2),
    _TEXT: (2,),
    _BYTES: (2,),
}
_MESSAGES = {  # number of a field -> its name, and its kind or message
    "model": {
        1: ("ir_version", _INT), 2: ("producer_name", _TEXT), 3: ("producer_version", _TEXT),
        4: ("domain", _TEXT), 5: ("model_version", _INT), 6: ("doc_string", _TEXT), 7: ("graph", "graph"),
        8: ("opset_import", "opset"), 14: ("metadata_props", "entry"),
    },
    "opset": {1: ("domain", _TEXT), 2: ("version", _INT)},
    "entry": {1: ("key", _TEXT), 2: ("value", _TEXT)},
    "graph": {
        1: ("node", "node"), 2: ("name", _TEXT), 5: ("initializer", "tensor"), 10: ("doc_string", _TEXT),
        11: ("input", "value"), 12: ("output", "value"), 13: ("value_info", "value"),
        16: ("metadata_props", "entry"),
    },
    "node": {
        1: ("input", _TEXT), 2: ("output", _TEXT), 3: ("name", _TEXT), 4: ("op_type", _TEXT),
        5: ("attribute", "attribute"), 6: ("doc_string", _TEXT), 7: ("domain", _TEXT),
        9: ("metadata_props", "entry"),
    },
    "attribute": {
        1: ("name", _TEXT), 2: ("f", _FLOAT), 3: ("i", _INT), 4: ("s", _BYTES), 7: ("floats", _FLOATS),
        8: ("ints", _INTS), 9: ("strings", _BYTES), 13: ("doc_string", _TEXT), 20: ("type", _INT),
    },
    "tensor": {
        1: ("dims", _INTS), 2: ("data_type", _INT), 4: ("float_data", _FLOATS), 5: ("int32_data", _INTS),
        7: ("int64_data", _INTS), 8: ("name", _TEXT), 9: ("raw_data", _BYTES), 10: ("double_data", _DOUBLES),
        12: ("doc_string", _TEXT), 13: ("external_data", "entry"), 14: ("data_location", _INT),
        16: ("metadata_props", "entry"),
    },
    "value": {
        1: ("name", _TEXT), 2: ("type", "type"), 3: ("doc_string", _TEXT), 4: ("metadata_props", "entry"),
    },
    "type": {1: ("tensor_type", "tensor_type"), 6: ("denotation", _TEXT)},
    "tensor_type": {1: ("elem_type", _INT), 2: ("shape", "shape")},
    "shape": {1: ("dim", "dimension")},
    "dimension": {1: ("dim_value", _INT), 2: ("dim_param", _TEXT), 3: ("denotation", _TEXT)},
}  # fmt: skip
_EXTERNAL = 1  # TensorProto.EXTERNAL
_KEYS = ("location", "offset", "length")  # of external data


def weight_file(graph: str) -> str:
    """The file of a bundle that holds a graph's weights."""
    return "predictors.safetensors" if graph == "predictors" else "model.safetensors"


def check_weights(file: Path, weights: Path) -> int:
    """Bytes of `weights` that the graph in `file` uses. Raises BundleError where it is not such a
    graph as the exporter writes, or takes weights from elsewhere.
    """
    try:
        if file.stat().st_size > MOST_BYTES:
            raise _BadGraph(f"{file.stat().st_size} bytes")
        content = file.read_bytes()
        model = _message("model", content, 0, len(content))
        total = 0
        size = weights.stat().st_size
        for graph in model.get("graph", ()):
            _check_nodes(graph.get("node", ()))
            for tensor in graph.get("initializer", ()):
                total += _external_bytes(tensor, weights.name, size)
    except (_BadGraph, UnicodeDecodeError) as error:
        raise BundleError(
            "graph does not load", got=f"'{file}': {error!s:.200}", fix="export the model again"
        ) from error
    return total


class _BadGraph(Exception):
    """Signals what is wrong with a graph."""


def _check_nodes(nodes: list[dict[str, list]]) -> None:
    for node in nodes:
        if any(node.get("domain", ())) or not OPERATORS.issuperset(node.get("op_type", ())):
            kind = ".".join([*node.get("domain", ()), *node.get("op_type", ())])
            raise _BadGraph(f"operator {kind!r}, which firp export never writes")


def _external_bytes(tensor: dict[str, list], weights: str, size: int) -> int:
    """The length of a tensor's external data; 0 when it holds its values itself."""
    name = "".join(tensor.get("name", ()))
    entries = tensor.get("external_data", ())
    location = tensor.get("data_location", [0])
    if location == [0] and not entries:
        return 0
    pairs = [(*entry.get("key", ()), *entry.get("value", ())) for entry in entries]
    if location != [_EXTERNAL] or sorted(pair[0] for pair in pairs if len(pair) == 2) != sorted(_KEYS):
        raise _BadGraph(f"external data of {name!r} with {pairs}")
    values = dict(pairs)
    if values["location"] != weights:
        raise _BadGraph(f"weights of {name!r} in {values['location']!r}, not in {weights!r}")
    offset, length = (_number(values[key], name) for key in ("offset", "length"))
    if offset + length > size:
        raise _BadGraph(f"weights of {name!r} end at byte {offset + length} of {weights!r}, which has {size}")
    return length


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise _BadGraph(f"external data of {name!r} at {text!r}")
    return int(text)


def _message(kind: str, data: bytes, at: int, end: int) -> dict[str, list[Any]]:
    """The fields in data[at:end], by name, in order. Numbers and texts are values, other content
    is None. Messages are as deep as `_MESSAGES`, which has no circle.
    """
    fields = _MESSAGES[kind]
    found = {}
    while at < end:
        key, at = _varint(data, at, end)
        name, value_kind = fields.get(key >> 3, (None, None))
        if name is None:
            raise _BadGraph(f"field {key >> 3} of a {kind}, which firp export never writes")
        wire = key & 7
        if wire not in _WIRE_TYPES.get(value_kind, (2,)):
            raise _BadGraph(f"wire type {wire} for {name} of a {kind}")
        value, stop = None, at + (8 if wire == 1 else 4)
        if wire == 0:
            value, stop = _varint(data, at, end)
        elif wire == 2:
            size, at = _varint(data, at, end)
            stop = at + size
        if stop > end:
            raise _BadGraph(f"{name} of a {kind} ends outside it")
        if value_kind == _TEXT:
            value = data[at:stop].decode()
        elif value_kind in _MESSAGES:
            value = _message(value_kind, data, at, stop)
        at = stop
        found.setdefault(name, []).append(value)
    return found


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where the next field begins."""
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _BadGraph(f"a number without end at byte {at}")
