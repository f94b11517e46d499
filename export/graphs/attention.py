"""The attention of one layer as ONNX nodes.

In: normed rows and the cache views of one layer. Out: attended rows and this pass's new keys and
values. The shapes of the cache follow the "prefix" contract: a graph reads past [P, B, Hkv, Dh] and
returns new [rows, B, Hkv, Dh].
"""

from typing import NamedTuple

import onnx_ir as ir

from firp.export.graphs.builder import GraphBuilder
from firp.runtime.bundle.weight_table import ROPE_TABLES


class LayerCache(NamedTuple):
    """Keys and values of one layer, [slots, B, Hkv, Dh]: the past that goes in, or the new rows
    that come out.
    """

    key: ir.Value
    value: ir.Value


class PassContext:
    """Values that every layer of one graph shares: row positions, the mask, cos and sin, and the
    shapes to reshape to.
    """

    def __init__(self, b: GraphBuilder, like: ir.Value, position_ids: ir.Value, attention_bias: ir.Value):
        c = b.config.attention
        self.position_ids = position_ids
        self.bias = attention_bias
        self.cos, self.sin = (b.weights[name] for name in ROPE_TABLES)
        self.query_shape = b.batch_shape(like, c.num_heads, c.head_dim)
        self.kv_shape = b.batch_shape(like, c.num_key_value_heads, c.head_dim)
        self.scale = b.scalar(c.head_dim**-0.5)

    def rotate(self, b: GraphBuilder, heads: ir.Value) -> ir.Value:
        """Rotate [B, H, T, Dh] by its rows' positions."""
        return b.op("RotaryEmbedding", heads, self.cos, self.sin, self.position_ids)


def attention(
    b: GraphBuilder, layer: str, rows: ir.Value, shared: PassContext, past: LayerCache
) -> tuple[ir.Value, LayerCache]:
    """Attend within one layer: rows [B*T, D] -> (rows [B*T, D], new keys and values [T, B, Hkv,
    Dh]).
    """
    c = b.config.attention
    sizes = [c.query_size, c.key_value_size, c.key_value_size]
    query, key, value = b.split(b.linear(rows, f"{layer}.qkv_proj"), sizes)
    query = b.op("Reshape", query, shared.query_shape)  # [B, T, H, Dh]
    key = b.op("Reshape", key, shared.kv_shape)  # [B, T, Hkv, Dh]
    value = b.op("Reshape", value, shared.kv_shape)
    if c.qk_norm:
        query, key = b.norm(query, f"{layer}.q_norm"), b.norm(key, f"{layer}.k_norm")
    query = shared.rotate(b, b.op("Transpose", query, perm=[0, 2, 1, 3]))  # [B, H, T, Dh]
    # on the rows: a scale inside Attention makes TensorRT multiply all keys
    query = b.op("Mul", query, shared.scale)
    key = shared.rotate(b, b.op("Transpose", key, perm=[0, 2, 1, 3]))
    new = LayerCache(b.op("Transpose", key, perm=[2, 0, 1, 3]), b.op("Transpose", value, perm=[1, 0, 2, 3]))
    keys, values = (
        b.op("Transpose", b.op("Concat", before, rows_now, axis=0), perm=[1, 2, 0, 3])  # [B, Hkv, P+T, Dh]
        for before, rows_now in zip(past, new, strict=True)
    )
    attended = b.op("Attention", query, keys, values, shared.bias, scale=1.0)  # [B, H, T, Dh]
    attended = b.rows(b.op("Transpose", attended, perm=[0, 2, 1, 3]), c.query_size)
    return b.linear(attended, f"{layer}.o_proj"), new
