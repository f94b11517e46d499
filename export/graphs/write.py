"""The graphs of a bundle as ONNX files.

In: a ModelConfig, the prediction layer, the precision, and where each weight lies. Out: one ONNX
file a graph, with the inputs and outputs that `firp.runtime.bundle.graph_spec` declares.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from firp.export.graphs.builder import GraphBuilder, onnx_dtype
from firp.export.graphs.halves import lower, upper
from firp.export.graphs.predictors import predictors
from firp.export.sources.tensor_record import TensorRecord
from firp.runtime.bundle.graph_spec import GraphSpec, TensorSpec, graph_specs, layers_of
from firp.runtime.bundle.model_config import ModelConfig, Precision

OPSET = 24
IR_VERSION = 11


def write_graphs(
    folder: Path,
    config: ModelConfig,
    prediction_layer: int,
    num_predictors: int,
    precision: Precision,
    records: dict[str, TensorRecord],
    contract: str,
    draft_tokens: np.ndarray | None = None,
) -> dict[str, GraphSpec]:
    """Write the file of every graph with a cache of this contract, and of the predictors; weights
    stay where `records` says, as external data. draft_tokens: see `upper`. Returns the declarations.
    """
    specs = graph_specs(config, prediction_layer, num_predictors, precision, contract)
    for name, spec in specs.items():
        weights = _ExternalWeights(folder, records)
        builder = GraphBuilder(config, precision.compute, weights)
        inputs = {tensor.name: _value(tensor) for tensor in spec.inputs}
        layers = layers_of(name, config, prediction_layer)
        if name == "predictors":
            outputs = predictors(builder, inputs)
        elif name == "lower":
            outputs = lower(builder, inputs, layers, spec)
        else:
            outputs = upper(builder, inputs, layers, spec, draft_tokens)
        for tensor in spec.outputs:
            value = outputs[tensor.name]
            value.name = tensor.name
            value.type = ir.TensorType(onnx_dtype(tensor.dtype))
            value.shape = ir.Shape(tensor.shape)
        graph = ir.Graph(
            list(inputs.values()),
            [outputs[tensor.name] for tensor in spec.outputs],
            nodes=builder.tape.nodes,
            initializers=[*builder.tape.initializers, *weights.used.values()],
            opset_imports={"": OPSET},
            name=name,
        )
        ir.save(ir.Model(graph, ir_version=IR_VERSION, producer_name="firp"), folder / spec.file)
    return specs


class _ExternalWeights:
    """Initializers that point into the bundle's weight files; each is made when a graph first asks
    for it.
    """

    def __init__(self, folder: Path, records: dict[str, TensorRecord]):
        self.folder = folder
        self.records = records
        self.used: dict[str, ir.Value] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.records

    def __getitem__(self, name: str) -> ir.Value:
        if name not in self.used:
            record = self.records[name]
            shape = ir.Shape(record.shape)
            dtype = ir.DataType.UINT4 if record.dtype == "uint4" else onnx_dtype(record.dtype)
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
    kind = ir.TensorType(onnx_dtype(tensor.dtype))
    return ir.Value(name=tensor.name, shape=ir.Shape(tensor.shape), type=kind)
