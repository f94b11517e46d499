"""The two halves of a model: layers up to the prediction layer, and those above it with the head.

In: the declared inputs of a half. Out: its declared outputs by name. There are no subclasses:
what architectures differ in is in `ModelConfig`.
"""

import numpy as np

from firp.runtime.bundle.graph_spec import IN_PLACE, GraphSpec, cache_names
from firp.runtime.bundle.graphs.attention.layer import LayerCache, PassContext, attention
from firp.runtime.bundle.graphs.builder import GraphBuilder
from firp.runtime.bundle.graphs.experts import experts
from firp.runtime.bundle.graphs.mlp import mlp
from firp.runtime.bundle.graphs.tape import FLOAT, Value
from firp.runtime.bundle.weight_table import DRAFT_HEAD, head_name, layer_name

# of layer i, as layers.{i}.attention_out: the residual stream after attention, after all
DRAFT_TOKENS = "draft_tokens"  # the constant that lists them
LAYER_OUTPUTS = ("attention_out", "out")


def lower(b: GraphBuilder, inputs: dict[str, Value], layers: range, spec: GraphSpec) -> dict[str, Value]:
    """Build the lower half: token ids [B, T] to hidden states [B, T, D] and new cache rows."""
    ids = inputs["input_ids"]
    size = b.config.hidden_size
    stream = b.rows(embedded(b, ids, inputs.get("position_ids")), size)  # [B*T, D]
    stream, caches = _layers(b, stream, ids, inputs, layers, spec.cache)
    return {"hidden_states": b.op("Reshape", stream, b.batch_shape(ids, size)), **caches}


def embedded(b: GraphBuilder, ids: Value, positions: Value | None) -> Value:
    """Embeddings [B, T, D] of token ids [B, T]."""
    embedding = b.config.embedding
    rows = b.scaled(b.embed(ids), embedding.scale)
    if b.config.positions.learned:
        rows = b.op("Add", rows, b.op("Gather", b.weights["embed_positions.weight"], positions))
    return b.norm(rows, "embed_norm", embedding.norm) if embedding.norm else rows


def upper(
    b: GraphBuilder,
    inputs: dict[str, Value],
    layers: range,
    spec: GraphSpec,
    draft_tokens: np.ndarray | None,
) -> dict[str, Value]:
    """Build the upper half: hidden states [B, R, D] to logits, top lists and new cache rows.
    draft_tokens: [n] i64 that pseudo rows are decoded over; None: all.
    """
    hidden = inputs["hidden_states"]
    c = b.config
    stream, caches = _layers(b, b.rows(hidden, c.hidden_size), hidden, inputs, layers, spec.cache)
    stream = b.op("Reshape", stream, b.batch_shape(hidden, c.hidden_size))  # [B, R, D]
    head = head_name(c).removesuffix(".weight")
    if "draft_rows" in inputs and draft_tokens is None and f"{head}.scale" in b.weights:
        return _decode_together(b, stream, inputs, head, spec) | caches
    logits, logprobs, ids = _decode(b, stream, inputs["logits_rows"], head, c.vocab_size, spec)
    outputs = {"logits": logits, "top_ids": ids, "top_logprobs": logprobs, **caches}
    if "draft_rows" in inputs:
        tokens = c.vocab_size
        if draft_tokens is not None:
            head, tokens = DRAFT_HEAD, len(draft_tokens)
        _, logprobs, ids = _decode(b, stream, inputs["draft_rows"], head, tokens, spec)
        if draft_tokens is not None:
            ids = b.op("Gather", b.constant(DRAFT_TOKENS, "int64", draft_tokens), ids)
        outputs |= {"draft_ids": ids, "draft_logprobs": logprobs}
    return outputs


def _decode_together(
    b: GraphBuilder, stream: Value, inputs: dict[str, Value], head: str, spec: GraphSpec
) -> dict[str, Value]:
    """Decode verified and pseudo rows in one product of integers, whose rows are exact whatever stands
    beside them. Where ONNX Runtime widens weights for a processor without VNNI, it takes no weight that
    two products share.
    """
    kinds = [inputs["logits_rows"], inputs["draft_rows"]]
    sizes = b.op("Concat", *(b.op("Shape", rows, start=1, end=2) for rows in kinds), axis=0)
    rows = b.op("Concat", *kinds, axis=1)
    decoded = _decode(b, stream, rows, head, b.config.vocab_size, spec)
    (logits, _), (logprobs, draft_logprobs), (ids, draft_ids) = (
        b.tape.op_multi_out("Split", [value, sizes], {"axis": 1}, num_outputs=2) for value in decoded
    )
    return {
        "logits": logits,
        "top_ids": ids,
        "top_logprobs": logprobs,
        "draft_ids": draft_ids,
        "draft_logprobs": draft_logprobs,
    }


def _decode(
    b: GraphBuilder, stream: Value, rows: Value, head: str, tokens: int, spec: GraphSpec
) -> tuple[Value, Value, Value]:
    """Decode rows [B, n] of the stream [B, R, D] over a head's tokens: logits f32 [B, n, tokens], and
    the best log-probabilities with their places among the tokens, [B, n, k] each.
    """
    count = spec.output("top_ids").shape[-1]
    decoded = b.norm(b.rows(b.gather_rows(stream, rows), b.config.hidden_size), "norm")
    b.start_rows(decoded)
    logits = b.linear(decoded, head)
    shape = b.batch_shape(rows, tokens)
    # ONNX Runtime takes an empty list of rows, whose 0 would else mean "as many as there are"
    logits = b.op("Reshape", logits, shape, **({"allowzero": 1} if spec.cache == IN_PLACE else {}))
    logits = b.soft_capped(b.scaled(logits, b.config.head.scale), b.config.head.softcap)
    if b.dtype != "float32":
        logits = b.op("Cast", logits, to=FLOAT)
    logprobs, places = b.top(b.op("LogSoftmax", logits, axis=-1), count)
    return logits, logprobs, places


def _layers(
    b: GraphBuilder,
    stream: Value,
    like: Value,
    inputs: dict[str, Value],
    layers: range,
    contract: str,
) -> tuple[Value, dict[str, Value]]:
    """Run several layers. like: its first two axes are B and the rows of a sequence."""
    b.start_rows(stream)
    shared = PassContext(b, like, inputs, layers, contract)
    caches = {}
    for index in layers:
        names = cache_names([index], contract, b.config.attention.cached)
        past = tuple(inputs[name.past] for name in names)
        stream, new = decoder_layer(b, index, stream, shared, past)
        caches |= {name.new: value for name, value in zip(names, new, strict=True)}
    return stream, caches


def decoder_layer(
    b: GraphBuilder, index: int, stream: Value, shared: PassContext, past: LayerCache
) -> tuple[Value, LayerCache]:
    """Run one layer: stream [B*T, D] -> (stream [B*T, D], the cache after them)."""
    layer = layer_name(index)
    block = b.config.block

    def normed(rows: Value, norm: str) -> Value:
        return b.norm(rows, f"{layer}.{norm}") if norm in block.norms else rows

    read = normed(stream, "input_norm")
    attended, new = attention(b, index, read, shared, past)
    attended = b.scaled(normed(attended, "attention_out_norm"), block.scale)
    after_attention, after_mlp = (f"{layer}.{output}" for output in LAYER_OUTPUTS)
    after = b.op("Add", stream, attended, output=after_attention)
    if not block.parallel:
        read = normed(after, "mlp_norm")
    elif "mlp_norm" in block.norms:
        read = normed(stream, "mlp_norm")
    if b.config.layers[index].sparse:
        changed = experts(b, layer, read, shared.branches)
    else:
        changed = mlp(b, layer, read, b.config.mlp.intermediate_size)
    changed = b.scaled(normed(changed, "mlp_out_norm"), block.scale)
    return b.op("Add", after, changed, output=after_mlp), new
