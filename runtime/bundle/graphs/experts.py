"""A mixture of experts as ONNX nodes.

In: normed rows. Out: rows to add to the residual stream. How experts run is the target's: ONNX Runtime
runs those that a row chose, on its rows alone. TensorRT, which takes no branches, copies the weights of
those that are chosen where rows are few, and else runs all of them in one product and weighs.
"""

import numpy as np

from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.graphs.builder import GraphBuilder
from firp.runtime.bundle.graphs.mlp import mlp
from firp.runtime.bundle.graphs.tape import FLOAT, Value

_FAR = 1e9  # below every score
_PASSES = 3  # of a gathered expert through memory: it is read, written, and read by the product


def experts(b: GraphBuilder, layer: str, rows: Value, branches: bool) -> Value:
    """Run the experts of one layer: rows [n, D] -> [n, D]. branches: only those that are chosen."""
    c = b.config.experts
    chosen, best = _choice(b, layer, rows, branches)
    if branches:
        total = _chosen(b, layer, rows, _by_expert(b, chosen, best))
    else:
        total = b.few_or_many(
            (rows, chosen, best),
            c.count // (_PASSES * c.per_token),
            lambda rows, chosen, best: _gathered(b, layer, rows, chosen, best),
            lambda rows, chosen, best: _all(b, layer, rows, _by_expert(b, chosen, best)),
        )
    if not c.shared_size:
        return total
    shared = mlp(b, f"{layer}.shared", rows, c.shared_size)
    if c.shared_gate:
        shared = b.op("Mul", shared, b.op("Sigmoid", b.linear(rows, f"{layer}.shared_gate")))
    return b.op("Add", total, shared)


def _chosen(b: GraphBuilder, layer: str, rows: Value, weights: Value) -> Value:
    """The weighed sum [n, D] of what experts make of rows [n, D], each of those that chose it. weights:
    [n, E].
    """
    c = b.config.experts
    total = b.op("Mul", rows, b.scalar(0.0))
    for index, weight in enumerate(b.split(weights, [1] * c.count)):  # [n, 1] each
        expert = f"{layer}.experts.{index}"
        total = b.add_to_chosen(
            total,
            rows,
            b.op("Squeeze", weight, b.ints([1])),
            lambda some, expert=expert: mlp(b, expert, some, c.intermediate_size),
        )
    return total


def _all(b: GraphBuilder, layer: str, rows: Value, weights: Value) -> Value:
    """The same sum of what all experts make of all rows."""
    c = b.config.experts

    def linear(read: Value, name: str) -> Value:
        return b.linear_of_each(read, name, c.count, shared=read is rows)

    made = mlp(b, f"{layer}.experts", rows, c.intermediate_size, linear)
    shares = b.op("Unsqueeze", b.op("Transpose", weights, perm=[1, 0]), b.ints([-1]))  # [E, n, 1]
    return b.op("ReduceSum", b.op("Mul", made, shares), b.ints([0]), keepdims=0)


def _gathered(b: GraphBuilder, layer: str, rows: Value, chosen: Value, best: Value) -> Value:
    """The same sum of what the chosen experts [n, k] make of their rows, by their weights best [n, k]."""
    c = b.config.experts

    def linear(rows: Value, name: str) -> Value:
        return b.linear_of_chosen(rows, name, c.count, chosen)

    alone = b.op("Unsqueeze", rows, b.ints([1, 2]))  # [n, 1, 1, D]
    made = mlp(b, f"{layer}.experts", alone, c.intermediate_size, linear)  # [n, k, 1, D]
    shares = b.op("Unsqueeze", _stored(b, best), b.ints([2, 3]))
    return b.op("ReduceSum", b.op("Mul", made, shares), b.ints([1, 2]), keepdims=0)


def _choice(b: GraphBuilder, layer: str, rows: Value, branches: bool) -> tuple[Value, Value]:
    """The experts that each row chooses, and their weights in float32, [n, k] each."""
    c = b.config.experts
    logits = b.linear(rows, f"{layer}.router")
    if b.dtype != "float32":
        logits = b.op("Cast", logits, to=FLOAT)
    if c.score == "sparsemixer":
        return _mixed(b, logits)
    scores = b.op("Softmax", logits, axis=-1) if c.score == "softmax" else b.op("Sigmoid", logits)
    best, chosen = b.top(_selection(b, layer, scores, branches), c.per_token)
    if c.selection_bias:
        best = b.op("GatherElements", scores, chosen, axis=1)
    if c.normalized:
        best = b.op("Div", best, b.op("ReduceSum", best, b.ints([-1]), keepdims=1))
    if c.scale != 1:
        best = b.op("Mul", best, _float32(b, c.scale))
    return chosen, best


def _by_expert(b: GraphBuilder, chosen: Value, best: Value) -> Value:
    """The weights [n, k] of chosen experts [n, k] among those of all, [n, E], in the graph's type."""
    hits = _hits(b, chosen, b.config.experts.count)
    weights = b.op("Where", hits, b.op("Unsqueeze", best, b.ints([-1])), _float32(b, 0.0))
    return _stored(b, b.op("ReduceSum", weights, b.ints([1]), keepdims=0))


def _stored(b: GraphBuilder, weights: Value) -> Value:
    """Weights of experts in the graph's type."""
    return weights if b.dtype == "float32" else b.op("Cast", weights, to=DTYPES[b.dtype].onnx_number)


def _hits(b: GraphBuilder, places: Value, count: int) -> Value:
    """Whether each place [n, k] is that one of `count`, [n, k, count]. TensorRT makes one kernel of it and
    what comes next, and three of a scatter.
    """
    every = b.constant(f"places_{count}", "int64", np.arange(count, dtype=np.int64))
    return b.op("Equal", b.op("Unsqueeze", places, b.ints([-1])), every)


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
        taken = b.op("Squeeze", _hits(b, place, b.config.experts.count), b.ints([1]))
        left = b.op("Where", taken, far, left)
    return b.op("Concat", *places, axis=1), b.op("Concat", *weights, axis=1)


def _selection(b: GraphBuilder, layer: str, scores: Value, branches: bool) -> Value:
    """What the best are chosen by, [n, E]: far below every score in groups that are left out."""
    c = b.config.experts
    if c.selection_bias:
        bias = b.weights[f"{layer}.selection_bias.weight"]
        scores = b.op("Add", scores, bias if b.dtype == "float32" else b.op("Cast", bias, to=FLOAT))
    if c.groups == 1:
        return scores
    grouped = b.op("Reshape", scores, b.ints([-1, c.groups, c.count // c.groups]))
    _, kept = b.top(_rating(b, grouped, branches), c.groups_kept)
    mask = b.op("Where", _hits(b, kept, c.groups), _float32(b, 0.0), _float32(b, -_FAR))
    mask = b.op("ReduceMax", mask, b.ints([1]), keepdims=0)  # [n, groups]
    masked = b.op("Add", grouped, b.op("Unsqueeze", mask, b.ints([2])))
    return b.op("Reshape", masked, b.ints([-1, c.count]))


def _rating(b: GraphBuilder, grouped: Value, branches: bool) -> Value:
    """The sum [n, groups] of the best scores of each group [n, groups, E / groups]. Of one alone TensorRT
    sorts nothing.
    """
    count = b.config.experts.groups_rated_by
    if count == 1 and not branches:
        return b.op("ReduceMax", grouped, b.ints([-1]), keepdims=0)
    best, _ = b.top(grouped, count)
    return b.op("ReduceSum", best, b.ints([-1]), keepdims=0)


def _float32(b: GraphBuilder, value: float) -> Value:
    """A number in float32, in which routers compute whatever the graph's type."""
    return b.constant(f"float32_{value:.9g}", "float32", np.array(value, np.float32))
