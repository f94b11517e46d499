"""The predictors' graph: pseudo rows from hidden states at the prediction layer.

In: hidden states and the rows that are draft sources. Out: the same hidden states, K pseudo rows
for each source after them.
"""

import onnx_ir as ir

from firp.export.graphs.builder import GraphBuilder

PREDICTORS_WEIGHT = "predictors.weight"  # [K*D, D]: all K as one GEMM


def predictors(b: GraphBuilder, inputs: dict[str, ir.Value]) -> dict[str, ir.Value]:
    """Append pseudo rows h~ = W_j h: hidden_states [B, T, D], source_rows [B, M] -> [B, T + M*K,
    D].
    """
    hidden = inputs["hidden_states"]
    size = b.config.hidden_size
    sources = b.rows(b.gather_rows(hidden, inputs["source_rows"]), size)  # [B*M, D]
    pseudo = b.op("Gemm", sources, b.weights[PREDICTORS_WEIGHT], transB=1)  # [B*M, K*D]
    shape = b.op("Concat", b.op("Shape", hidden, start=0, end=1), b.ints([-1, size]), axis=0)
    return {"hidden_states_out": b.op("Concat", hidden, b.op("Reshape", pseudo, shape), axis=1)}
