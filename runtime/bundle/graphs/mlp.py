"""The MLP of one layer as ONNX nodes.

In: normed rows. Out: rows to add to the residual stream.
"""

from firp.runtime.bundle.graphs.builder import GraphBuilder
from firp.runtime.bundle.graphs.tape import Value


def mlp(b: GraphBuilder, layer: str, rows: Value) -> Value:
    """Run the MLP of one layer: rows [B*T, D] -> [B*T, D]."""
    gate, up = b.split(b.linear(rows, f"{layer}.gate_up_proj"), [b.config.mlp.intermediate_size] * 2)
    activated = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)  # SwiGLU
    return b.linear(activated, f"{layer}.down_proj")
