"""Attention with sinks, as ONNX nodes: every head has a learned score of a key that holds nothing, which
takes its share of the softmax and gives no value.

In: queries, keys and values, the mask, and the sinks. Out: attended queries. Where keys are joined
anyway, the sink is one more of them; where they lie in a buffer that no pass copies, scores get a column.
"""

from firp.runtime.bundle.graphs.builder import GraphBuilder
from firp.runtime.bundle.graphs.tape import Value


def sink_slot(b: GraphBuilder, rows: Value) -> Value:
    """The key, or the value, of a sink: zeros [1, B, Hkv, Dh] beside rows [T, B, Hkv, Dh]."""
    shape = b.op("Concat", b.ints([1]), b.op("Shape", rows, start=1, end=4), axis=0)
    return b.op("Expand", b.values("sink_slot", (0.0,), (1, 1, 1, 1)), shape)


def bias_with_sinks(b: GraphBuilder, bias: Value, sinks: Value) -> Value:
    """The mask [B, 1, T, keys] as [B, H, T, keys + 1], whose last column is the sinks [H]."""
    heads = b.config.attention.num_heads
    by_head = b.op("Expand", bias, b.ints([1, heads, 1, 1]))
    return b.op("Concat", by_head, _column(b, by_head, sinks), axis=-1)


def attend_with_sinks(
    b: GraphBuilder, query: Value, keys: Value, values: Value, bias: Value, sinks: Value
) -> Value:
    """Attend from queries [B, H', T', Dh], with a mask [B, H' or 1, T', S], to buffers [B, Hkv, S, Dh]: each
    row in a product of its own where every row is a head, as Attention does it.
    """
    c = b.config.attention
    whole = b.op("Shape", query)
    slots = b.op("Shape", keys, start=2, end=3)
    batch, rows = b.op("Shape", query, start=0, end=1), b.op("Shape", query, start=2, end=4)
    grouped = b.op("Concat", batch, b.ints([c.num_key_value_heads, -1]), rows, axis=0)
    query = b.op("Reshape", query, grouped)  # [B, Hkv, G', T', Dh]
    keys, values = (b.op("Unsqueeze", each, b.ints([2])) for each in (keys, values))
    scores = b.op("MatMul", query, b.op("Transpose", keys, perm=[0, 1, 2, 4, 3]))
    grouped = b.op("Shape", scores)
    before, after = b.op("Shape", bias, start=0, end=1), b.op("Shape", bias, start=2, end=4)
    shape = b.op("Concat", before, b.ints([-1]), after, axis=0)
    scores = b.op("Add", b.op("Reshape", scores, shape), bias)
    scores = b.op("Reshape", scores, b.op("Concat", b.ints([0, c.num_heads, -1]), slots, axis=0))
    shares = b.op("Softmax", b.op("Concat", scores, _column(b, scores, sinks), axis=-1), axis=-1)
    shares = b.op("Slice", shares, b.ints([0]), slots, b.ints([-1]))
    return b.op("Reshape", b.op("MatMul", b.op("Reshape", shares, grouped), values), whole)


def _column(b: GraphBuilder, like: Value, sinks: Value) -> Value:
    """Sinks [H] as a column [B, H, T, 1] beside [B, H, T, keys]."""
    shape = b.op("Concat", b.op("Shape", like, start=0, end=3), b.ints([1]), axis=0)
    return b.op("Expand", b.op("Reshape", sinks, b.ints([1, -1, 1, 1])), shape)
