"""The products of a quantized bundle: in float32, so that its graphs can be compared with the model
in float64, and as they are, beside integer arithmetic.

Rounding activations to int8 turns the last bit of a float into a step of 1/127 here and there, and
would drown a graph's error in it. So the two are told apart. Graphs are run with every quantized
product replaced by that of the same integers' values in float32: all that is not a product must then
be exact. And every product is run alone, as the graph has it, on rows made for it: integers must be
exact.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from firp.export.verify.report import Check
from firp.runtime.backends.interface import LoadedGraphs
from firp.runtime.backends.onnx_runtime import OnnxRuntimeBackend, OnnxRuntimeGraph
from firp.runtime.bundle.format import Bundle
from firp.runtime.bundle.graphs.products import ACTIVATION_LEVELS, FINER
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckFailedError

_ROWS = 9  # made to test a product
# Roundings of a float32 product: the scale of a row, its product with the sum and that with the
# column's scale; and the quotient that is rounded to an integer, which is exact but for its own.
_ROUNDINGS = 8.0
_UNIT = 2.0**-24
_COLUMNS = 4096  # of a product that are checked at a time


class FloatProducts(OnnxRuntimeBackend):
    """ONNX Runtime on the CPU, all products in float32."""

    def options(self) -> ort.SessionOptions:
        options = super().options()
        # weights become float32 when the graph is loaded
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        return options

    def load(self, bundle: Bundle, check_hashes: bool) -> LoadedGraphs:
        graphs = {}
        options = _weights_beside(self.options(), bundle)
        for name, spec in bundle.manifest.graphs.items():
            model = ir.load(bundle.graph_path(spec))
            for product in quantized_products(model.graph):
                _in_float(product)
            graphs[name] = OnnxRuntimeGraph(_session(model, options), spec, "cpu", None)
        return LoadedGraphs(graphs, None)


def float_engine(bundle: Bundle) -> Engine:
    """The engine of a quantized bundle with all products in float32, which is held to what float32
    bundles are held to.
    """
    plain = dataclasses.replace(bundle.manifest, quantization=None)
    return Engine(dataclasses.replace(bundle, manifest=plain), FloatProducts(), check_hashes=False)


class _Product:
    """One integer product of a graph: the rows that go in, its weight, and the value that comes out."""

    def __init__(self, node: ir.Node):
        quantized = node.inputs[0].producer()
        self.rows = quantized.inputs[0]
        whole = self.rows.producer()
        self.fine = whole is not None and whole.op_type == "Concat"
        last = _only_reader(_only_reader(node.outputs[0]).outputs[0])
        if self.fine:  # of the first byte's rows, and of the second's: split, added, on the step of the row
            self.rows = whole.inputs[0].producer().inputs[0].producer().inputs[0]
            for _ in range(3):
                last = _only_reader(last.outputs[0])
        if quantized.op_type != "QuantizeLinear" or last.op_type != "Mul":
            raise CheckFailedError(f"not a product that firp export writes: {node.name}")
        self.weight = node.inputs[1]
        self.scale = last.inputs[1]
        self.result = last.outputs[0]


def quantized_products(graph: ir.Graph) -> list[_Product]:
    """All integer products of a graph and its branches. Raises CheckFailedError for one of another form."""
    return [_Product(node) for node in graph.all_nodes() if node.op_type == "MatMulInteger"]


def _only_reader(value: ir.Value) -> ir.Node:
    readers = list(value.uses())
    if len(readers) != 1:
        raise CheckFailedError(f"not a product that firp export writes: {value.name}")
    return readers[0].node


def _in_float(product: _Product) -> None:
    last = product.result.producer()
    weight = ir.node("DequantizeLinear", [product.weight, product.scale], {"axis": 1})
    result = ir.node("MatMul", [product.rows, weight.outputs[0]])
    for made, of in ((weight, product.weight), (result, product.result)):
        made.outputs[0].name = f"{of.name}.float"  # ONNX wants other names than around a branch
    last.graph.insert_before(last, [weight, result])  # which of an expert is a branch
    product.result.replace_all_uses_with(result.outputs[0])


def _weights_beside(options: ort.SessionOptions, bundle: Bundle) -> ort.SessionOptions:
    """The options, with the folder where a model that is no file finds its weights."""
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.path))
    return options


def _session(model: ir.Model, options: ort.SessionOptions) -> ort.InferenceSession:
    content = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def check_products(bundle: Bundle, options: ort.SessionOptions) -> Iterator[Check]:
    """The largest difference of each graph's integer products from integer arithmetic, in roundings
    of float32. options: that the graphs run with.
    """
    options = _weights_beside(options, bundle)
    for name in ("lower", "upper"):
        model = ir.load(bundle.graph_path(bundle.manifest.graphs[name]))
        products = quantized_products(model.graph)
        if products:
            worst = max(_difference(product, options) for product in products)
            yield Check(f"integer products, {name} graph", worst <= _ROUNDINGS, worst, _ROUNDINGS)


def _difference(product: _Product, options: ort.SessionOptions) -> float:
    weight, scale = (value.const_value.numpy() for value in (product.weight, product.scale))
    rows = _rows(weight)
    (found,) = _session(_alone(product), options).run(None, {product.rows.name: rows})
    worst = 0.0
    step = np.abs(rows).max(1, keepdims=True) * np.float32(1 / ACTIVATION_LEVELS)
    with np.errstate(invalid="ignore"):
        scaled = rows / step
        made = [np.rint(scaled)]
        if product.fine:
            made.append(np.rint((scaled - made[0]) / np.float32(1 / FINER)) / FINER)
    integers = [np.nan_to_num(each).astype(np.float64) for each in made]
    for start in range(0, weight.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        values = weight[:, columns].astype(np.float64)
        parts = [each @ values * step * scale[columns].astype(np.float64) for each in integers]
        off = np.abs(found[:, columns] - sum(parts))
        size = sum(map(np.abs, parts))  # each part is rounded
        off = np.where(off == 0, 0, off / np.maximum(size, np.finfo(np.float32).tiny))
        worst = max(worst, float(np.max(off)) / _UNIT)  # NaN fails
    return worst


def _rows(weight: np.ndarray) -> np.ndarray:
    """Rows [n, in] f32 that are hard for a product: of ordinary values, of one massive value, of zeros,
    and of the largest sums that columns can make.
    """
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((_ROWS, len(weight))).astype(np.float32)
    rows[1] *= 1e-3
    rows[2, 0] = 20_000
    rows[3] = 0
    rows[4] = np.sign(weight[:, 0])
    rows[5] = -np.sign(weight[:, -1])
    rows[6] = 1
    return rows


def _alone(product: _Product) -> ir.Model:
    """The nodes of one product as a model of its own, whose rows are its only input."""
    source = ir.Value(name=product.rows.name, type=product.rows.type, shape=ir.Shape(["n", None]))
    source.type = ir.TensorType(ir.DataType.FLOAT)
    copies: dict[ir.Value, ir.Value] = {product.rows: source}
    nodes: list[ir.Node] = []
    constants: list[ir.Value] = []

    def copy(value: ir.Value) -> ir.Value:
        if value in copies:
            return copies[value]
        if value.const_value is not None:
            made = ir.Value(
                name=value.name, type=value.type, shape=value.shape, const_value=value.const_value
            )
            constants.append(made)
        else:
            node = value.producer()
            # a count of rows, whatever it is taken from
            inputs = [source] if node.op_type == "Shape" else [copy(each) for each in node.inputs]
            attributes = list(node.attributes.values())
            nodes.append(ir.Node("", node.op_type, inputs, attributes, num_outputs=len(node.outputs)))
            copies.update(zip(node.outputs, nodes[-1].outputs, strict=True))
            return copies[value]
        copies[value] = made
        return made

    result = copy(product.result)
    result.name = "result"
    result.type = ir.TensorType(ir.DataType.FLOAT)
    result.shape = ir.Shape(["n", None])
    graph = ir.Graph([source], [result], nodes=nodes, initializers=constants, opset_imports={"": 24})
    return ir.Model(graph, ir_version=11)
