"""The attention of one layer as ONNX nodes, of whatever kind its queries and keys are.

In: normed rows and the cache of one layer. Out: attended rows, and the cache as the graph gives it
back. What stands between new keys and values and the attention over all of them is the cache
contract (`firp.runtime.bundle.graph_spec`): rows written into a buffer, or joined to a view.
"""

import numpy as np

from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.graph_spec import IN_PLACE
from firp.runtime.bundle.graphs.attention.latent import latent_heads, latent_shapes, latent_values
from firp.runtime.bundle.graphs.attention.sinks import attend_with_sinks, bias_with_sinks, sink_slot
from firp.runtime.bundle.graphs.attention.window import attend_to_last, cut_masks
from firp.runtime.bundle.graphs.builder import GraphBuilder
from firp.runtime.bundle.graphs.tape import FLOAT, Value
from firp.runtime.bundle.weight_table import layer_name, rope_names

# what one layer caches, as it goes in or comes out: keys and values, or latent rows, which are both
LayerCache = tuple[Value, ...]


class PassContext:
    """Values that every layer of one graph shares: row positions, masks, cos and sin, and the shapes
    to reshape to.
    """

    def __init__(self, b: GraphBuilder, like: Value, inputs: dict[str, Value], layers: range, contract: str):
        c = b.config.attention
        self.position_ids = inputs.get("position_ids")  # where layers read positions
        self.tables = {
            rope: tuple(b.weights[name] for name in rope_names(rope)) for rope in b.config.positions.ropes
        }
        self.heads = [c.num_heads, c.num_key_value_heads, c.num_key_value_heads]
        if c.latent:
            self.latent = latent_shapes(b, like)
        else:
            self.qkv_shape = b.batch_shape(like, sum(self.heads), c.head_dim)
        self.scale = b.scalar(c.scale)
        self.growth = self._growth(b) if c.growth else None
        self.contract = contract
        self.branches = contract == IN_PLACE  # whether a graph may run parts of itself or not
        self.biases = {name: inputs[name] for name in sorted(b.config.masks(layers))}
        if contract == IN_PLACE:
            self.write_at = inputs["write_at"]
            self.query_shape = inputs["query_shape"]
            self.biases, self.last_slots = cut_masks(b, self.biases, inputs, layers)
            self.biases = {
                name: b.op("Tile", bias, inputs["bias_repeats"]) for name, bias in self.biases.items()
            }
        if b.config.positions.alibi:
            slopes = self._slopes_by_position(b)
            self.biases = {name: b.op("Add", bias, slopes) for name, bias in self.biases.items()}
        if contract == IN_PLACE:
            self.biases = {
                name: b.op("Reshape", bias, inputs["bias_shape"]) for name, bias in self.biases.items()
            }

    def rotate(self, b: GraphBuilder, heads: Value, layer: int) -> Value:
        """Rotate [B, H, T, rope_size] by its rows' positions, as the layer does."""
        rope = b.config.layers[layer].rope
        if rope is None:
            return heads
        turned = 2 * len(b.config.positions.ropes[rope].frequencies)
        some = {"rotary_embedding_dim": turned} if turned < b.config.attention.rope_size else {}
        if b.config.positions.interleaved:
            some["interleaved"] = 1
        return b.op("RotaryEmbedding", heads, *self.tables[rope], self.position_ids, **some)

    def _growth(self, b: GraphBuilder) -> Value:
        """Factors of queries by their positions, [B, 1, T, 1]."""
        growth = b.config.attention.growth
        length = b.constant(f"index_{growth.length}", "int64", np.array(growth.length, np.int64))
        times = b.op("Cast", b.op("Div", self.position_ids, length), to=DTYPES[b.dtype].onnx_number)
        logarithm = b.op("Log", b.op("Add", times, b.scalar(1.0)))
        factors = b.op("Add", b.op("Mul", logarithm, b.scalar(growth.rate)), b.scalar(1.0))
        return b.op("Unsqueeze", factors, b.ints([1, 3]))

    def _slopes_by_position(self, b: GraphBuilder) -> Value:
        """What each head adds to a score by the position of the key, [B, H, 1, keys]."""
        (bias, *_) = self.biases.values()
        zero, one = (b.constant(f"index_{value}", "int64", np.array(value, np.int64)) for value in (0, 1))
        columns = b.op("Squeeze", b.op("Shape", bias, start=3, end=4))
        batch = b.op("Concat", b.op("Shape", self.position_ids, start=0, end=1), b.ints([1]), axis=0)
        if self.contract == IN_PLACE:
            slots = b.op("Unsqueeze", b.op("Range", zero, columns, one), b.ints([0]))
            positions = b.op("Expand", slots, batch)
            positions = b.op("TensorScatter", positions, self.position_ids, self.write_at, axis=1)
        else:
            rows = b.op("Squeeze", b.op("Shape", self.position_ids, start=1, end=2))
            cached = b.op("Range", zero, b.op("Sub", columns, rows), one)
            positions = b.op("Concat", b.op("Expand", cached, batch), self.position_ids, axis=1)
        positions = b.op("Unsqueeze", positions, b.ints([1, 2]))
        dtype, slopes = DTYPES[b.dtype].onnx_number, b.config.positions.alibi
        if not b.config.positions.alibi_rounded:
            slopes = b.values("alibi", slopes, (1, -1, 1, 1))
            return b.op("Mul", slopes, b.op("Cast", positions, to=dtype))
        slopes = b.constant("alibi", "float32", np.array(slopes, np.float32).reshape(1, -1, 1, 1))
        products = _rounded(b, b.op("Mul", _rounded(b, slopes), _rounded(b, positions)))
        products = products if b.dtype == "float32" else b.op("Cast", products, to=dtype)
        return b.op("Mul", products, self.scale)


def attention(
    b: GraphBuilder, index: int, rows: Value, shared: PassContext, past: LayerCache
) -> tuple[Value, LayerCache]:
    """Attend within one layer: rows [B*T, D] -> (rows [B*T, D], the cache after them)."""
    c = b.config.attention
    layer = layer_name(index)
    query, new = (_latent if c.latent else _by_head)(b, index, rows, shared)  # [B, heads, T, Dh] each
    # on the rows: a scale inside Attention is also multiplied with all keys
    query = b.op("Mul", query, shared.scale)
    if c.growth:
        query = b.op("Mul", query, shared.growth)
    attend = _attend_in_place if shared.contract == IN_PLACE else _attend_to_prefix
    mask = b.config.mask(index)
    sinks = b.weights[f"{layer}.sinks.weight"] if c.sinks else None
    attended, cache = attend(b, query, new, shared, mask, past, sinks)  # [B, H, T, Dh]
    if c.latent:
        attended = latent_values(b, layer, attended, shared.contract)
    else:
        attended = b.rows(b.op("Transpose", attended, perm=[0, 2, 1, 3]), c.query_size)
    if c.gated:
        attended = b.op("Mul", attended, b.op("Sigmoid", b.linear(rows, f"{layer}.attention_gate")))
    return b.linear(attended, f"{layer}.o_proj"), cache


def _rounded(b: GraphBuilder, values: Value) -> Value:
    """Numbers in float32, rounded to those that bfloat16 has."""
    return b.op("Cast", b.op("Cast", values, to=DTYPES["bfloat16"].onnx_number), to=FLOAT)


def _by_head(b: GraphBuilder, index: int, rows: Value, shared: PassContext) -> tuple[Value, LayerCache]:
    """Queries [B, H, T, Dh] of rows [B*T, D]; keys and values [B, Hkv, T, Dh]."""
    layer = layer_name(index)
    joined = b.op("Reshape", _joined(b, layer, rows), shared.qkv_shape)  # [B, T, H+2Hkv, Dh]
    query, key, value = b.split(b.op("Transpose", joined, perm=[0, 2, 1, 3]), shared.heads, axis=1)
    query, key = (
        _positioned(b, index, heads, shared, f"{layer}.{norm}")
        for heads, norm in ((query, "q_norm"), (key, "k_norm"))
    )
    return query, (key, value)


def _latent(b: GraphBuilder, index: int, rows: Value, shared: PassContext) -> tuple[Value, LayerCache]:
    """Queries [B, H, T, Dh] of rows [B*T, D], and the latent rows [B, 1, T, Dh] that are both keys and
    values.
    """
    layer = layer_name(index)
    query, row = latent_heads(b, layer, rows, shared.latent, lambda part: shared.rotate(b, part, index))
    return query, (row,)


def _joined(b: GraphBuilder, layer: str, rows: Value) -> Value:
    """Queries, keys and values [B*T, (H + 2 Hkv) * Dh] of rows [B*T, D]."""
    c = b.config.attention
    joined = b.linear(rows, f"{layer}.qkv_proj")
    if c.qk_norm and c.qk_norm.over == "all":
        query, key, value = b.split(joined, [c.query_size, c.key_value_size, c.key_value_size])
        query, key = (
            b.norm(part, f"{layer}.{norm}", c.qk_norm.kind)
            for part, norm in ((query, "q_norm"), (key, "k_norm"))
        )
        joined = b.op("Concat", query, key, value, axis=-1)
    if c.clip is not None:
        joined = b.op("Clip", joined, b.scalar(-c.clip), b.scalar(c.clip))
    return joined


def _positioned(b: GraphBuilder, index: int, heads: Value, shared: PassContext, norm: str) -> Value:
    """Queries or keys [B, H, T, Dh], normed and turned by their positions."""
    c = b.config.attention.qk_norm
    by_head = c is not None and c.over != "all"
    if by_head and not c.after_rope:
        heads = _head_norm(b, heads, norm)
    heads = shared.rotate(b, heads, index)
    return _head_norm(b, heads, norm) if by_head and c.after_rope else heads


def _head_norm(b: GraphBuilder, heads: Value, name: str) -> Value:
    """Normalize each head of [B, H, T, Dh]."""
    c = b.config.attention
    if c.qk_norm.over == "head":
        return b.norm(heads, name, c.qk_norm.kind)
    ones = b.values("ones", (1.0,) * c.head_dim, (-1,))
    weights = b.op("Unsqueeze", b.weights[f"{name}.weight"], b.ints([1]))  # [H, 1, Dh]
    return b.op("Mul", b.normalized(heads, c.qk_norm.kind, ones), weights)


def _attend_in_place(
    b: GraphBuilder,
    query: Value,
    new: LayerCache,
    shared: PassContext,
    mask: str,
    past: LayerCache,
    sinks: Value | None,
) -> tuple[Value, LayerCache]:
    """Write the new rows into the buffers [B, Hkv, S, Dh], and attend to these."""
    c = b.config.attention
    buffers = tuple(
        b.op("TensorScatter", buffer, rows, shared.write_at, axis=2)
        for buffer, rows in zip(past, new, strict=True)
    )
    query, bias = b.op("Reshape", query, shared.query_shape), shared.biases[mask]

    def attend(slots: LayerCache) -> Value:
        if sinks is not None:
            return attend_with_sinks(b, query, *slots, bias, sinks)
        capped = {"softcap": c.softcap} if c.softcap else {}
        return b.op("Attention", query, slots[0], slots[-1], bias, scale=1.0, **capped)

    last = shared.last_slots.get(mask)
    attended = attend_to_last(b, last, buffers, attend) if last else attend(buffers)
    return b.op("Reshape", attended, b.ints([0, c.num_heads, -1, c.head_dim])), buffers


def _attend_to_prefix(
    b: GraphBuilder,
    query: Value,
    new: LayerCache,
    shared: PassContext,
    mask: str,
    past: LayerCache,
    sinks: Value | None,
) -> tuple[Value, LayerCache]:
    """Attend to views [P, B, Hkv, Dh] and the new rows, which are given back [T, B, Hkv, Dh]."""
    c = b.config.attention
    rows = tuple(b.op("Transpose", heads, perm=[2, 0, 1, 3]) for heads in new)
    slot = [] if sinks is None else [sink_slot(b, rows[0])]
    whole = [
        # [B, Hkv, P+T, Dh]
        b.op("Transpose", b.op("Concat", before, rows_now, *slot, axis=0), perm=[1, 2, 0, 3])
        for before, rows_now in zip(past, rows, strict=True)
    ]
    keys, values, bias = whole[0], whole[-1], shared.biases[mask]
    if sinks is not None:
        bias = bias_with_sinks(b, bias, sinks)
    if c.latent:
        _, values = b.split(values, [c.latent.rope_size, c.latent.rank])
    if c.softcap is None and c.latent is None:
        return b.op("Attention", query, keys, values, bias, scale=1.0), rows
    return _attend_by_products(b, query, keys, values, bias), rows


def _attend_by_products(b: GraphBuilder, query: Value, keys: Value, values: Value, bias: Value) -> Value:
    """Attention with capped scores, whose attribute TensorRT does not take, or with more features than
    its kernels have: [B, H, T, Dh] to [B, H, T, features of values]. Heads of one group are rows of one
    product.
    """
    c = b.config.attention
    grouped = b.op("Reshape", query, b.ints([0, c.num_key_value_heads, -1, c.head_dim]))  # [B, Hkv, G*T, Dh]
    scores = b.op("MatMul", grouped, b.op("Transpose", keys, perm=[0, 1, 3, 2]))
    rows, slots = b.op("Shape", query, start=0, end=3), b.op("Shape", keys, start=2, end=3)
    shape = b.op("Concat", rows, slots, axis=0)
    scores = b.soft_capped(b.op("Reshape", scores, shape), c.softcap)  # [B, H, T, keys]
    shares = b.op("Softmax", b.op("Add", scores, bias), axis=-1)
    columns = b.op("Concat", b.ints([0, c.num_key_value_heads, -1]), slots, axis=0)
    shares = b.op("Reshape", shares, columns)
    whole = b.op("Concat", rows, b.op("Shape", values, start=3, end=4), axis=0)
    return b.op("Reshape", b.op("MatMul", shares, values), whole)
