"""The attention of one layer as ONNX nodes.

In: normed rows and the cache of one layer. Out: attended rows, and the cache as the graph gives it
back. What stands between new keys and values and the attention over all of them is the cache
contract (`firp.runtime.bundle.graph_spec`): rows written into a buffer, or joined to a view.
"""

from typing import NamedTuple

from firp.runtime.bundle.graph_spec import IN_PLACE
from firp.runtime.bundle.graphs.builder import GraphBuilder
from firp.runtime.bundle.graphs.tape import Value
from firp.runtime.bundle.weight_table import ROPE_TABLES


class LayerCache(NamedTuple):
    """Keys and values of one layer, as they go in or come out."""

    key: Value
    value: Value


class PassContext:
    """Values that every layer of one graph shares: row positions, the mask, cos and sin, and the
    shapes to reshape to.
    """

    def __init__(self, b: GraphBuilder, like: Value, inputs: dict[str, Value], contract: str):
        c = b.config.attention
        self.position_ids = inputs["position_ids"]
        self.bias = inputs["attention_bias"]
        self.cos, self.sin = (b.weights[name] for name in ROPE_TABLES)
        heads = [c.num_heads, c.num_key_value_heads, c.num_key_value_heads]
        self.heads = heads
        self.qkv_shape = b.batch_shape(like, sum(heads), c.head_dim)
        self.scale = b.scalar(c.head_dim**-0.5)
        self.contract = contract
        if contract == IN_PLACE:
            self.write_at = inputs["write_at"]
            self.query_shape = inputs["query_shape"]
            self.bias = b.op("Reshape", b.op("Tile", self.bias, inputs["bias_repeats"]), inputs["bias_shape"])

    def rotate(self, b: GraphBuilder, heads: Value) -> Value:
        """Rotate [B, H, T, Dh] by its rows' positions."""
        return b.op("RotaryEmbedding", heads, self.cos, self.sin, self.position_ids)


def attention(
    b: GraphBuilder, layer: str, rows: Value, shared: PassContext, past: LayerCache
) -> tuple[Value, LayerCache]:
    """Attend within one layer: rows [B*T, D] -> (rows [B*T, D], the cache after them)."""
    c = b.config.attention
    joined = b.op("Reshape", b.linear(rows, f"{layer}.qkv_proj"), shared.qkv_shape)  # [B, T, H+2Hkv, Dh]
    query, key, value = b.split(b.op("Transpose", joined, perm=[0, 2, 1, 3]), shared.heads, axis=1)
    if c.qk_norm:
        query, key = b.norm(query, f"{layer}.q_norm"), b.norm(key, f"{layer}.k_norm")
    # on the rows: a scale inside Attention is also multiplied with all keys
    query = b.op("Mul", shared.rotate(b, query), shared.scale)  # [B, H, T, Dh]
    new = LayerCache(shared.rotate(b, key), value)  # [B, Hkv, T, Dh] each
    attend = _attend_in_place if shared.contract == IN_PLACE else _attend_to_prefix
    attended, cache = attend(b, query, new, shared, past)  # [B, H, T, Dh]
    attended = b.rows(b.op("Transpose", attended, perm=[0, 2, 1, 3]), c.query_size)
    return b.linear(attended, f"{layer}.o_proj"), cache


def _attend_in_place(
    b: GraphBuilder, query: Value, new: LayerCache, shared: PassContext, past: LayerCache
) -> tuple[Value, LayerCache]:
    """Write the new rows into the buffers [B, Hkv, S, Dh], and attend to these."""
    c = b.config.attention
    buffers = LayerCache(
        *(
            b.op("TensorScatter", buffer, rows, shared.write_at, axis=2)
            for buffer, rows in zip(past, new, strict=True)
        )
    )
    query = b.op("Reshape", query, shared.query_shape)
    attended = b.op("Attention", query, *buffers, shared.bias, scale=1.0)
    return b.op("Reshape", attended, b.ints([0, c.num_heads, -1, c.head_dim])), buffers


def _attend_to_prefix(
    b: GraphBuilder, query: Value, new: LayerCache, shared: PassContext, past: LayerCache
) -> tuple[Value, LayerCache]:
    """Attend to views [P, B, Hkv, Dh] and the new rows, which are given back [T, B, Hkv, Dh]."""
    rows = LayerCache(*(b.op("Transpose", heads, perm=[2, 0, 1, 3]) for heads in new))
    keys, values = (
        b.op("Transpose", b.op("Concat", before, rows_now, axis=0), perm=[1, 2, 0, 3])  # [B, Hkv, P+T, Dh]
        for before, rows_now in zip(past, rows, strict=True)
    )
    return b.op("Attention", query, keys, values, shared.bias, scale=1.0), rows
