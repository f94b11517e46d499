"""A bundle of a half type in float32: the same graphs, whose weights are cast where they are read.

In: a bundle. Out: an engine that computes in float32 with the bundle's rounded weights, tables and
constants. So graphs whose type has no kernels on a CPU are verified there.
"""

import dataclasses

import onnx_ir as ir
import onnxruntime as ort

from firp.runtime.backends.interface import LoadedGraphs
from firp.runtime.backends.onnx_runtime import OnnxRuntimeBackend, OnnxRuntimeGraph
from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.format import Bundle
from firp.runtime.bundle.graph_spec import GraphSpec, TensorSpec
from firp.runtime.bundle.precision import Precision
from firp.runtime.engine import Engine

WIDE = "float32"
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def engine_for_checks(bundle: Bundle) -> Engine:
    """The bundle's engine on the CPU; of a type that has no kernels there, in float32."""
    has_kernels = DTYPES[bundle.manifest.precision.compute].has_cpu_kernels
    backend = OnnxRuntimeBackend()
    return Engine(bundle, backend, check_hashes=False) if has_kernels else widened_engine(bundle)


def widened_engine(bundle: Bundle) -> Engine:
    """The engine of a bundle of a half type in float32, which its manifest then says, too."""
    manifest = bundle.manifest
    specs = {name: _widened(spec) for name, spec in manifest.graphs.items()}
    wide = dataclasses.replace(manifest, precision=Precision.uniform(WIDE), graphs=specs)
    return Engine(dataclasses.replace(bundle, manifest=wide), _Widened(), check_hashes=False)


class _Widened(OnnxRuntimeBackend):
    """ONNX Runtime on the CPU, with graphs in float32 whatever their files say."""

    def load(self, bundle: Bundle, check_hashes: bool) -> LoadedGraphs:
        options = self.options()
        folder = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(folder, str(bundle.path))
        graphs = {}
        for name, spec in bundle.manifest.graphs.items():
            content = ir.to_proto(in_float32(ir.load(bundle.graph_path(spec)))).SerializeToString()
            session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            graphs[name] = OnnxRuntimeGraph(session, spec, "cpu", None)
        return LoadedGraphs(graphs, None)


def in_float32(model: ir.Model) -> ir.Model:
    """The model with inputs, outputs and arithmetic in float32, changed in place."""
    graph = model.graph
    weights = [weight for weight in graph.initializers.values() if weight.dtype in _HALF]
    for node in graph.all_nodes():
        if node.op_type == "Cast" and node.attributes["to"].as_int() in _HALF:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    made = (value for node in graph.all_nodes() for value in node.outputs)
    for value in (*graph.inputs, *graph.outputs, *made):
        if value.dtype in _HALF:
            value.dtype = ir.DataType.FLOAT
    casts = []
    for weight in weights:
        cast = ir.node("Cast", [weight], {"to": ir.DataType.FLOAT})
        wide = cast.outputs[0]
        wide.name = f"{weight.name}.{WIDE}"
        for use in tuple(weight.uses()):
            if use.node is not cast:
                use.node.replace_input_with(use.idx, wide)
        casts.append(cast)
    graph.insert_before(graph[0], casts)
    return model


def _widened(spec: GraphSpec) -> GraphSpec:
    return dataclasses.replace(
        spec,
        inputs=tuple(_wide(tensor) for tensor in spec.inputs),
        outputs=tuple(_wide(tensor) for tensor in spec.outputs),
    )


def _wide(tensor: TensorSpec) -> TensorSpec:
    half = tensor.dtype in ("float16", "bfloat16")
    return dataclasses.replace(tensor, dtype=WIDE) if half else tensor
