"""The MLP of one layer as ONNX nodes.

In: normed rows. Out: rows to add to the residual stream.
"""

from firp.runtime.bundle.graphs.builder import GraphBuilder
from firp.runtime.bundle.graphs.tape import Value


def mlp(b: GraphBuilder, layer: str, rows: Value) -> Value:
    """Run the MLP of one layer: rows [B*T, D] -> [B*T, D]."""
    c = b.config.mlp
    if c.gated:
        gate, up = b.split(b.linear(rows, f"{layer}.gate_up_proj"), [c.intermediate_size] * 2)
        inner = b.op("Mul", activated(b, gate, c.activation), up)
    else:
        inner = activated(b, b.linear(rows, f"{layer}.up_proj"), c.activation)
    return b.linear(inner, f"{layer}.down_proj")


def activated(b: GraphBuilder, value: Value, activation: str) -> Value:
    """Apply one of `firp.runtime.bundle.model_config.ACTIVATIONS`."""
    if activation == "silu":
        return b.op("Mul", value, b.op("Sigmoid", value))
    if activation.startswith("gelu"):
        return b.op("Gelu", value, approximate="tanh" if activation == "gelu_tanh" else "none")
    positive = b.op("Relu", value)
    return b.op("Mul", positive, positive) if activation == "relu2" else positive
