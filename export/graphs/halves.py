"""The three graphs of a bundle as ONNX models.

In: a ModelConfig, the prediction layer, the dtype, and where each weight lies. Out: one ONNX file a
graph, with the inputs and outputs that `firp.runtime.bundle.graph_spec` declares.
"""

from pathlib import Path

import onnx_ir as ir

from firp.export.graphs.decoder import Attention, GraphBuilder, LayerCache, decoder_layer
from firp.export.sources.safetensors_file import TensorRecord
from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.graph_spec import GraphSpec, ModelConfig, TensorSpec, graph_specs

OPSET = 24
IR_VERSION = 11


def write_graphs(
    folder: Path,
    config: ModelConfig,
    prediction_layer: int,
    num_predictors: int,
    dtype: str,
    records: dict[str, TensorRecord],
) -> dict[str, GraphSpec]:
    """Write <name>.onnx for every graph; weights stay where `records` says, as external data.
    Returns the declarations.
    """
    specs = graph_specs(config, prediction_layer, num_predictors, dtype)
    layers = {"lower": range(prediction_layer), "upper": range(prediction_layer, config.num_hidden_layers)}
    for name, spec in specs.items():
        weights = _ExternalWeights(folder, records)
        builder = GraphBuilder(config, dtype, weights)
        inputs = {tensor.name: _value(tensor) for tensor in spec.inputs}
        if name == "predictors":
            outputs = _predictors(builder, inputs, num_predictors)
        elif name == "lower":
            outputs = _lower(builder, inputs, layers["lower"])
        else:
            outputs = _upper(builder, inputs, layers["upper"], spec)
        for tensor in spec.outputs:
            value = outputs[tensor.name]
            value.name, value.type, value.shape = (
                tensor.name,
                ir.TensorType(_onnx_dtype(tensor.dtype)),
                ir.Shape(tensor.shape),
            )
        graph = ir.Graph(
            list(inputs.values()),
            [outputs[tensor.name] for tensor in spec.outputs],
            nodes=builder.tape.nodes,
            initializers=[*builder.tape.initializers, *weights.used.values()],
            opset_imports={"": OPSET},
            name=name,
        )
        ir.save(ir.Model(graph, ir_version=IR_VERSION, producer_name="firp"), folder / f"{name}.onnx")
    return specs


class _ExternalWeights:
    """Initializers that point into the bundle's weight files; each is made when a graph first asks
    for it.
    """

    def __init__(self, folder: Path, records: dict[str, TensorRecord]):
        self.folder, self.records = folder, records
        self.used: dict[str, ir.Value] = {}

    def __call__(self, name: str) -> ir.Value:
        if name not in self.used:
            record = self.records[name]
            shape, dtype = ir.Shape(record.shape), _onnx_dtype(record.dtype)
            tensor = ir.ExternalTensor(
                record.file.name,
                record.offset,
                record.nbytes,
                dtype,
                shape=shape,
                name=name,
                base_dir=self.folder,
            )
            self.used[name] = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype), const_value=tensor)
        return self.used[name]


def _value(tensor: TensorSpec) -> ir.Value:
    return ir.Value(
        name=tensor.name, shape=ir.Shape(tensor.shape), type=ir.TensorType(_onnx_dtype(tensor.dtype))
    )


def _onnx_dtype(dtype: str) -> ir.DataType:
    return ir.DataType[DTYPES[dtype].onnx]


def _layers(
    b: GraphBuilder, stream: ir.Value, like: ir.Value, inputs: dict[str, ir.Value], layers: range
) -> tuple[ir.Value, dict[str, ir.Value]]:
    shared = Attention(b, like, inputs["position_ids"], inputs["attention_bias"])
    caches = {}
    for i in layers:
        past = LayerCache(inputs[f"past_key.{i}"], inputs[f"past_value.{i}"])
        stream, new = decoder_layer(b, i, stream, shared, past)
        caches |= {f"new_key.{i}": new.key, f"new_value.{i}": new.value}
    return stream, caches


def _lower(b: GraphBuilder, inputs: dict[str, ir.Value], layers: range) -> dict[str, ir.Value]:
    ids, size = inputs["input_ids"], b.config.hidden_size
    stream = b.rows(b.op("Gather", b.weight("embed_tokens.weight"), ids), size)  # [B*T, D]
    stream, caches = _layers(b, stream, ids, inputs, layers)
    return {"hidden_states": b.op("Reshape", stream, b.batch_shape(ids, size)), **caches}


def _predictors(b: GraphBuilder, inputs: dict[str, ir.Value], num_predictors: int) -> dict[str, ir.Value]:
    """K pseudo rows for each source, after the T real rows: h~ = W_j h, all K as one GEMM."""
    hidden, size = inputs["hidden_states"], b.config.hidden_size
    sources = b.rows(_gather_rows(b, hidden, inputs["source_rows"]), size)  # [B*M, D]
    pseudo = b.op("Gemm", sources, b.weight("predictors.weight"), transB=1)  # [B*M, K*D]
    shape = b.op("Concat", b.op("Shape", hidden, start=0, end=1), b.ints([-1, size]), axis=0)
    return {"hidden_states_out": b.op("Concat", hidden, b.op("Reshape", pseudo, shape), axis=1)}


def _upper(
    b: GraphBuilder, inputs: dict[str, ir.Value], layers: range, spec: GraphSpec
) -> dict[str, ir.Value]:
    hidden, c = inputs["hidden_states"], b.config
    stream, caches = _layers(b, b.rows(hidden, c.hidden_size), hidden, inputs, layers)
    decoded = _gather_rows(
        b, b.op("Reshape", stream, b.batch_shape(hidden, c.hidden_size)), inputs["logits_rows"]
    )
    rows = b.rms_norm(b.rows(decoded, c.hidden_size), "norm")
    head = "embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"
    logits = b.op(
        "Reshape",
        b.op("Gemm", rows, b.weight(head), transB=1),
        b.batch_shape(inputs["logits_rows"], c.vocab_size),
    )
    if hidden.dtype != _onnx_dtype(spec.output("logits").dtype):
        logits = b.op("Cast", logits, to=ir.DataType.FLOAT)
    count = spec.output("top_ids").shape[-1]
    logprobs, ids = b.tape.op_multi_out(
        "TopK",
        [b.op("LogSoftmax", logits, axis=-1), b.ints([count])],
        {"axis": -1, "largest": 1, "sorted": 1},
        num_outputs=2,
    )
    return {"logits": logits, "top_ids": ids, "top_logprobs": logprobs, **caches}


def _gather_rows(b: GraphBuilder, hidden: ir.Value, rows: ir.Value) -> ir.Value:
    """hidden [B, T, D], rows [B, n] -> [B, n, D]."""
    return b.op("GatherND", hidden, b.op("Unsqueeze", rows, b.ints([-1])), batch_dims=1)
