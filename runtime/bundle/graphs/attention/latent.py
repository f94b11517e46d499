"""Queries, latent rows and values of latent attention as ONNX nodes (DeepSeek-V2, 2024, 2.1).

In: normed rows of a layer. Out: queries multiplied into the space of the latent rows ("absorbed"), and
these rows, which stand for the keys and the values of all heads; and, of what queries attended to, the
heads' values. A row is [what is turned, what is compressed].
"""

from collections.abc import Callable
from typing import NamedTuple

from firp.runtime.bundle.graph_spec import PREFIX
from firp.runtime.bundle.graphs.builder import GraphBuilder
from firp.runtime.bundle.graphs.tape import Value


class LatentShapes(NamedTuple):
    """Shapes to reshape to. TensorRT turns no heads whose size it has to infer."""

    query: Value  # [B, T, H, key_size + rope_size]
    key: Value  # [B, 1, T, rope_size]
    compressed: Value  # [B, 1, T, rank]


def latent_shapes(b: GraphBuilder, like: Value) -> LatentShapes:
    """The shapes of one graph. like: its first two axes are B and T."""
    c = b.config.attention
    batch, count = (b.op("Shape", like, start=axis, end=axis + 1) for axis in (0, 1))
    key, compressed = (
        b.op("Concat", batch, b.ints([1]), count, b.ints([size]), axis=0)
        for size in (c.latent.rope_size, c.latent.rank)
    )
    query = b.batch_shape(like, c.num_heads, c.latent.key_size + c.latent.rope_size)
    return LatentShapes(query, key, compressed)


def latent_heads(
    b: GraphBuilder,
    layer: str,
    rows: Value,
    shapes: LatentShapes,
    rotate: Callable[[Value], Value],
) -> tuple[Value, Value]:
    """Queries [B, H, T, Dh] and latent rows [B, 1, T, Dh] of rows [B*T, D]. rotate: turns heads
    [B, heads, T, rope_size].
    """
    c = b.config.attention
    latent = c.latent
    queries = latent.query_rank or c.num_heads * (latent.key_size + latent.rope_size)
    joined = b.linear(rows, f"{layer}.qkv_proj")
    query, compressed, key = b.split(joined, [queries, latent.rank, latent.rope_size])
    if latent.query_rank:
        query = b.linear(b.norm(query, f"{layer}.q_norm", "rms", latent.epsilon), f"{layer}.q_up_proj")
    query = b.op("Reshape", query, shapes.query)
    if b.exact_rows:
        flat, turned = b.split(query, [latent.key_size, latent.rope_size])
        last = b.ints([3])  # a product for each row of each head
        flat = b.op("MatMul", b.op("Unsqueeze", flat, last), b.weights[f"{layer}.key_up.weight"])
        flat = b.op("Squeeze", flat, last)  # [B, T, H, rank]
        flat, turned = (b.op("Transpose", part, perm=[0, 2, 1, 3]) for part in (flat, turned))
    else:
        query = b.op("Transpose", query, perm=[0, 2, 1, 3])
        flat, turned = b.split(query, [latent.key_size, latent.rope_size])
        flat = b.op("MatMul", flat, b.weights[f"{layer}.key_up.weight"])  # [B, H, T, rank]
    query = b.op("Concat", rotate(turned), flat, axis=-1)
    compressed = b.norm(compressed, f"{layer}.latent_norm", "rms", latent.epsilon)
    parts = rotate(b.op("Reshape", key, shapes.key)), b.op("Reshape", compressed, shapes.compressed)
    return query, b.op("Concat", *parts, axis=-1)


def latent_values(b: GraphBuilder, layer: str, attended: Value, contract: str) -> Value:
    """Values of all heads side by side, [B*T, H * value_size], of means [B, H, T, Dh] of latent rows; with
    views of the cache of what is compressed in them, [B, H, T, rank].
    """
    c = b.config.attention
    latent = c.latent
    weight = b.weights[f"{layer}.value_up.weight"]
    if contract == PREFIX:
        # B and T as one axis: TensorRT copies rows whose two axes come back from a product
        means = b.op("Transpose", attended, perm=[1, 0, 2, 3])
        means = b.op("Reshape", means, b.ints([c.num_heads, -1, latent.rank]))
        values = b.op("MatMul", means, b.op("Transpose", weight, perm=[0, 2, 1]))
        return b.rows(b.op("Transpose", values, perm=[1, 0, 2]), c.num_heads * latent.value_size)
    _, means = b.split(attended, [latent.rope_size, latent.rank])
    if b.exact_rows:
        means = b.op("Unsqueeze", b.op("Transpose", means, perm=[0, 2, 1, 3]), b.ints([-1]))
        values = b.op("MatMul", weight, means)  # [B, T, H, value_size, 1]
    else:
        # the weight as it lies in the file: what is transposed is small
        values = b.op("MatMul", weight, b.op("Transpose", means, perm=[0, 1, 3, 2]))
        values = b.op("Transpose", values, perm=[0, 3, 1, 2])  # [B, T, H, value_size]
    return b.rows(values, c.num_heads * latent.value_size)
