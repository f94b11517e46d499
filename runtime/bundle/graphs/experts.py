"""A mixture of experts as ONNX nodes.

In: normed rows. Out: rows to add to the residual stream. How experts run is the target's: ONNX Runtime
runs those that a row chose, on its rows alone; TensorRT, which takes no branches, runs all and weighs.
"""

import numpy as np

from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.graphs.builder import GraphBuilder
from firp.runtime.bundle.graphs.mlp import mlp
from firp.runtime.bundle.graphs.tape import FLOAT, Value

_FAR = 1e9  # below every score


def experts(b: GraphBuilder, layer: str, rows: Value, branches: bool) -> Value:
    """Run the experts of one layer: rows [n, D] -> [n, D]. branches: only those that are chosen."""
    c = b.config.experts
    weights = b.split(_weights(b, layer, rows), [1] * c.count)  # [n, 1] each
    total = b.op("Mul", rows, b.scalar(0.0))
    for index, weight in enumerate(weights):
        expert = f"{layer}.experts.{index}"
        if branches:
            alone = b.op("Squeeze", weight, b.ints([1]))
            total = b.add_to_chosen(
                total, rows, alone, lambda some, expert=expert: mlp(b, expert, some, c.intermediate_size)
            )
        else:
            made = mlp(b, expert, rows, c.intermediate_size)
            total = b.op("Add", total, b.op("Mul", made, weight))
    if not c.shared_size:
        return total
    shared = mlp(b, f"{layer}.shared", rows, c.shared_size)
    if c.shared_gate:
        shared = b.op("Mul", shared, b.op("Sigmoid", b.linear(rows, f"{layer}.shared_gate")))
    return b.op("Add", total, shared)


def _weights(b: GraphBuilder, layer: str, rows: Value) -> Value:
    """The weight of every expert for every row, [n, E]; 0 for those that are not chosen."""
    c = b.config.experts
    logits = b.linear(rows, f"{layer}.router")
    if b.dtype != "float32":
        logits = b.op("Cast", logits, to=FLOAT)
    if c.score == "sparsemixer":
        return _scattered(b, logits, *_mixed(b, logits))
    scores = b.op("Softmax", logits, axis=-1) if c.score == "softmax" else b.op("Sigmoid", logits)
    best, chosen = b.top(_selection(b, layer, scores), c.per_token)
    if c.selection_bias:
        best = b.op("GatherElements", scores, chosen, axis=1)
    if c.normalized:
        best = b.op("Div", best, b.op("ReduceSum", best, b.ints([-1]), keepdims=1))
    if c.scale != 1:
        best = b.op("Mul", best, _float32(b, c.scale))
    return _scattered(b, scores, chosen, best)


def _scattered(b: GraphBuilder, like: Value, chosen: Value, best: Value) -> Value:
    """The weights [n, k] of chosen experts [n, k] among those of all, [n, E], in the graph's type."""
    weights = b.op("ScatterElements", b.op("Mul", like, _float32(b, 0.0)), chosen, best, axis=1)
    return weights if b.dtype == "float32" else b.op("Cast", weights, to=DTYPES[b.dtype].onnx_number)


def _mixed(b: GraphBuilder, logits: Value) -> tuple[Value, Value]:
    """The two experts that a sparsemixer chooses (Liu et al. 2023), and their weights, [n, 2] each: the
    share of each among those whose logits are close to its own, the second without the first.
    """
    far, threshold = _float32(b, -_FAR), _float32(b, 2 * b.config.experts.jitter)
    left, places, weights = logits, [], []
    for _ in range(2):
        best, place = b.top(left, 1)
        size = b.op("Max", b.op("Abs", logits), best)
        apart = b.op("Greater", b.op("Div", b.op("Sub", best, logits), size), threshold)
        shares = b.op("Softmax", b.op("Where", apart, far, left), axis=-1)
        weights.append(b.op("GatherElements", shares, place, axis=1))
        places.append(place)
        nothing = b.op("Mul", best, _float32(b, 0.0))
        left = b.op("ScatterElements", left, place, b.op("Add", nothing, far), axis=1)
    return b.op("Concat", *places, axis=1), b.op("Concat", *weights, axis=1)


def _selection(b: GraphBuilder, layer: str, scores: Value) -> Value:
    """What the best are chosen by, [n, E]: far below every score in groups that are left out."""
    c = b.config.experts
    if c.selection_bias:
        bias = b.weights[f"{layer}.selection_bias.weight"]
        scores = b.op("Add", scores, bias if b.dtype == "float32" else b.op("Cast", bias, to=FLOAT))
    if c.groups == 1:
        return scores
    grouped = b.op("Reshape", scores, b.ints([-1, c.groups, c.count // c.groups]))
    rating, _ = b.top(grouped, c.groups_rated_by)
    rated = b.op("ReduceSum", rating, b.ints([-1]), keepdims=0)  # [n, groups]
    best, kept = b.top(rated, c.groups_kept)
    nothing = b.op("Mul", rated, _float32(b, 0.0))
    out = b.op("Sub", nothing, _float32(b, _FAR))
    mask = b.op("ScatterElements", out, kept, b.op("Mul", best, _float32(b, 0.0)), axis=1)
    masked = b.op("Add", grouped, b.op("Unsqueeze", mask, b.ints([2])))
    return b.op("Reshape", masked, b.ints([-1, c.count]))


def _float32(b: GraphBuilder, value: float) -> Value:
    """A number in float32, in which routers compute whatever the graph's type."""
    return b.constant(f"float32_{value:.9g}", "float32", np.array(value, np.float32))
