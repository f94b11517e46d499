"""The predictors' graph: pseudo rows from hidden states at the prediction layer.

In: hidden states and the rows that are draft sources. Out: the same hidden states, K pseudo rows
for each source after them.
"""

from firp.runtime.bundle.graphs.builder import GraphBuilder
from firp.runtime.bundle.graphs.tape import Value
from firp.runtime.bundle.weight_table import PREDICTORS_WEIGHT


def predictors(b: GraphBuilder, inputs: dict[str, Value]) -> dict[str, Value]:
    """Append pseudo rows h~ = W_j h: hidden_states [B, T, D], source_rows [B, M] -> [B, T + M*K,
    D].
    """
    hidden = inputs["hidden_states"]
    size = b.config.hidden_size
    sources = b.rows(b.gather_rows(hidden, inputs["source_rows"]), size)  # [B*M, D]
    pseudo = b.op("Gemm", sources, b.weights[PREDICTORS_WEIGHT], transB=1)  # [B*M, K*D]
    shape = b.op("Concat", b.op("Shape", hidden, start=0, end=1), b.ints([-1, size]), axis=0)
    return {"hidden_states_out": b.op("Concat", hidden, b.op("Reshape", pseudo, shape), axis=1)}
