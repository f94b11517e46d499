"""The MLP of one layer as ONNX nodes.

In: normed rows. Out: rows to add to the residual stream.
"""

from collections.abc import Callable

from firp.runtime.bundle.graphs.builder import GraphBuilder
from firp.runtime.bundle.graphs.tape import Value
from firp.runtime.bundle.model_config import XIELU


def mlp(
    b: GraphBuilder,
    layer: str,
    rows: Value,
    inner_size: int,
    linear: Callable[[Value, str], Value] | None = None,
) -> Value:
    """Run the MLP of one layer, or of one expert: rows [n, D] -> [n, D]. linear: projects rows by a module;
    None: by that of this layer.
    """
    linear = linear or b.linear
    if b.config.mlp.gated:
        gate, up = b.split(linear(rows, f"{layer}.gate_up_proj"), [inner_size] * 2)
        inner = _clamped(b, gate, up) if b.config.mlp.clamped else b.op("Mul", activated(b, layer, gate), up)
    else:
        inner = activated(b, layer, linear(rows, f"{layer}.up_proj"))
    return linear(inner, f"{layer}.down_proj")


def activated(b: GraphBuilder, layer: str, value: Value) -> Value:
    """Apply the activation of a layer."""
    activation = b.config.mlp.activation
    if activation == XIELU:
        return _xielu(b, value, b.split(b.weights[f"{layer}.activation.weight"], [1] * 4, axis=0))
    if activation == "silu":
        return b.op("Mul", value, b.op("Sigmoid", value))
    if activation.startswith("gelu"):
        return b.op("Gelu", value, approximate="tanh" if activation == "gelu_tanh" else "none")
    positive = b.op("Relu", value)
    return b.op("Mul", positive, positive) if activation == "relu2" else positive


def _clamped(b: GraphBuilder, gate: Value, up: Value) -> Value:
    """The gated MLP of gpt-oss."""
    c = b.config.mlp.clamped
    high, low = b.scalar(c.limit), b.scalar(-c.limit)
    gate, up = b.op("Min", gate, high), b.op("Clip", up, low, high)
    gate = b.op("Mul", gate, b.op("Sigmoid", b.op("Mul", gate, b.scalar(c.slope))))
    return b.op("Mul", gate, b.op("Add", up, b.scalar(1.0)))


def _xielu(b: GraphBuilder, value: Value, parameters: list[Value]) -> Value:
    """xIELU (Huang and Schlag 2025): a square above 0, expm1 below it, and a line through both."""
    positive, negative, beta, epsilon = parameters
    line = b.op("Mul", value, beta)
    above = b.op("Mul", b.op("Mul", value, value), b.op("Softplus", positive))
    steep = b.op("Add", beta, b.op("Softplus", negative))
    powers = b.op("Sub", b.op("Exp", b.op("Min", value, epsilon)), b.scalar(1.0))
    below = b.op("Mul", b.op("Sub", powers, value), steep)
    return b.op("Add", b.op("Where", b.op("Greater", value, b.scalar(0.0)), above, below), line)
