"""The two halves of a model: layers up to the prediction layer, and those above it with the head.

In: the declared inputs of a half. Out: its declared outputs by name. There are no subclasses:
what architectures differ in is in `ModelConfig`.
"""

import onnx_ir as ir

from firp.export.graphs.attention import LayerCache, PassContext, attention
from firp.export.graphs.builder import GraphBuilder, onnx_dtype
from firp.export.graphs.mlp import mlp
from firp.runtime.bundle.graph_spec import GraphSpec, cache_names
from firp.runtime.bundle.weight_table import head_name, layer_name

# of layer i, as layers.{i}.attention_out: the residual stream after attention, after all
LAYER_OUTPUTS = ("attention_out", "out")


def lower(b: GraphBuilder, inputs: dict[str, ir.Value], layers: range) -> dict[str, ir.Value]:
    """Build the lower half: token ids [B, T] to hidden states [B, T, D] and new cache rows."""
    ids = inputs["input_ids"]
    size = b.config.hidden_size
    stream = b.rows(b.embed(ids), size)  # [B*T, D]
    stream, caches = _layers(b, stream, ids, inputs, layers)
    return {"hidden_states": b.op("Reshape", stream, b.batch_shape(ids, size)), **caches}


def upper(
    b: GraphBuilder, inputs: dict[str, ir.Value], layers: range, spec: GraphSpec
) -> dict[str, ir.Value]:
    """Build the upper half: hidden states [B, R, D] to logits, top lists and new cache rows."""
    hidden = inputs["hidden_states"]
    c = b.config
    stream, caches = _layers(b, b.rows(hidden, c.hidden_size), hidden, inputs, layers)
    stream = b.op("Reshape", stream, b.batch_shape(hidden, c.hidden_size))  # [B, R, D]
    decoded = b.gather_rows(stream, inputs["logits_rows"])  # [B, G, D]
    rows = b.norm(b.rows(decoded, c.hidden_size), "norm")
    b.start_rows(rows)
    logits = b.op(
        "Reshape",
        b.linear(rows, head_name(c).removesuffix(".weight")),
        b.batch_shape(inputs["logits_rows"], c.vocab_size),
    )
    if b.dtype != onnx_dtype(spec.output("logits").dtype):
        logits = b.op("Cast", logits, to=ir.DataType.FLOAT)
    count = spec.output("top_ids").shape[-1]
    logprobs, ids = b.tape.op_multi_out(
        "TopK",
        [b.op("LogSoftmax", logits, axis=-1), b.ints([count])],
        {"axis": -1, "largest": 1, "sorted": 1},
        num_outputs=2,
    )
    return {"logits": logits, "top_ids": ids, "top_logprobs": logprobs, **caches}


def _layers(
    b: GraphBuilder, stream: ir.Value, like: ir.Value, inputs: dict[str, ir.Value], layers: range
) -> tuple[ir.Value, dict[str, ir.Value]]:
    """Run several layers. like: its first two axes are B and the rows of a sequence."""
    b.start_rows(stream)
    shared = PassContext(b, like, inputs["position_ids"], inputs["attention_bias"])
    caches = {}
    for index in layers:
        names = cache_names([index])
        past = LayerCache(*(inputs[name.past] for name in names))
        stream, new = _decoder_layer(b, index, stream, shared, past)
        caches |= {name.new: value for name, value in zip(names, new, strict=True)}
    return stream, caches


def _decoder_layer(
    b: GraphBuilder, index: int, stream: ir.Value, shared: PassContext, past: LayerCache
) -> tuple[ir.Value, LayerCache]:
    """Run one layer: stream [B*T, D] -> (stream [B*T, D], new keys and values [T, B, Hkv, Dh])."""
    layer = layer_name(index)
    attended, new = attention(b, layer, b.norm(stream, f"{layer}.input_norm"), shared, past)
    after_attention, after_mlp = (f"{layer}.{output}" for output in LAYER_OUTPUTS)
    stream = b.op("Add", stream, attended, output=after_attention)
    stream = b.op("Add", stream, mlp(b, layer, b.norm(stream, f"{layer}.mlp_norm")), output=after_mlp)
    return stream, new
