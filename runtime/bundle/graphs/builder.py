"""One ONNX graph in the making (opset 24, standard operators).

In: nodes to add, by operator; weights, by name. Out: the values that they make, and the tape that
holds nodes and initializers. A linear layer has a bias where the weight table holds one, and is
quantized where it holds a scale.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from firp.runtime.bundle.dtypes import rounded
from firp.runtime.bundle.graphs.products import QuantizedProducts
from firp.runtime.bundle.graphs.tape import FLOAT, Branch, Tape, Value
from firp.runtime.bundle.model_config import ModelConfig


class Weights(Protocol):
    """Initializers of one graph, by the names of the weights."""

    def __contains__(self, name: str) -> bool: ...

    def __getitem__(self, name: str) -> Value:
        """The initializer of a weight, the same one each time."""

    def stacked(self, name: str, parts: Sequence[str]) -> Value:
        """The initializer of weights that lie one behind the other, [parts, ...]. name: its own."""


class GraphBuilder:
    """Adds nodes to one graph; `op` returns a node's output. dtype: of what the graph computes; formats:
    of its quantized weights, by their names.
    """

    def __init__(
        self, config: ModelConfig, dtype: str, weights: Weights, formats: Mapping[str, str] | None = None
    ):
        self.config = config
        self.weights = weights
        self.dtype = dtype
        self.tape = self._whole = Tape()
        self._constants: dict[str, Value] = {}
        # whether a row must have the same bits alone and among others, as products of integers have
        self.exact_rows = "embed_tokens.scale" in weights
        self._products = QuantizedProducts(self, formats or {})

    def op(self, op_type: str, *inputs: Value, output: str | None = None, **attributes: Any) -> Value:
        """Add one node; return its only output, named `output` if given."""
        value = self.tape.op(op_type, list(inputs), attributes)
        if output:
            value.name = output
        return value

    def branch(self, make: Callable[[], Value], shape: tuple[int | str, ...]) -> Branch:
        """What an If may run: the nodes that `make` adds, of which it returns the last value, of this
        shape.
        """
        outer, self.tape = self.tape, Tape()
        output = make()
        made, self.tape = self.tape, outer
        return Branch(made.nodes, output, self.dtype, shape, made.weights)

    def add_to_chosen(
        self, total: Value, rows: Value, weights: Value, make: Callable[[Value], Value]
    ) -> Value:
        """total [n, D] and, for rows [n, D] whose weight [n] is not 0, the weight times what `make` makes
        of them; nothing is computed where all weights are 0.
        """

        def some() -> Value:
            places = self.op("Transpose", self.op("NonZero", weights), perm=[1, 0])  # [m, 1]
            chosen = self.op("GatherND", rows, places)
            with self._products.other_rows(chosen):
                made = make(chosen)
            share = self.op("Unsqueeze", self.op("GatherND", weights, places), self.ints([-1]))
            # ONNX Runtime adds no half types where it scatters
            changed = self.op("Add", self.op("GatherND", total, places), self.op("Mul", made, share))
            return self.op("ScatterND", total, places, changed)

        shape = ("rows", self.config.hidden_size)
        any_row = self.op("Greater", self.op("ReduceMax", weights, keepdims=0), self.scalar(0.0))
        branches = self.branch(some, shape), self.branch(lambda: self.op("Identity", total), shape)
        return self.op("If", any_row, then_branch=branches[0], else_branch=branches[1])

    def few_or_many(
        self,
        values: Sequence[Value],
        most: int,
        few: Callable[..., Value],
        many: Callable[..., Value],
    ) -> Value:
        """What `few` makes of values [n, ...] of at most this many rows, `many` of more. Where a graph takes
        no branches both are run, the other one on no rows.
        """
        if not most:
            return many(*values)
        count, limit = self.op("Shape", values[0], start=0, end=1), self.ints([most])
        # at most `limit` whatever n is: TensorRT takes memory for what a size may be
        some = self.op("Min", count, limit)
        some = self.op("Where", self.op("LessOrEqual", count, limit), some, self.ints([0]))
        sizes = self.op("Concat", some, self.op("Sub", count, some), axis=0)
        parts = [
            self.tape.op_multi_out("Split", [value, sizes], {"axis": 0}, num_outputs=2) for value in values
        ]
        return self.op("Concat", few(*(a for a, _ in parts)), many(*(b for _, b in parts)), axis=0)

    def split(self, value: Value, sizes: list[int], axis: int = -1) -> list[Value]:
        """Split a value along an axis."""
        inputs = [value, self.ints(sizes)]
        return list(self.tape.op_multi_out("Split", inputs, {"axis": axis}, num_outputs=len(sizes)))

    def top(self, value: Value, count: int) -> list[Value]:
        """The largest values of the last axis, the best first, and their places."""
        attributes = {"axis": -1, "largest": 1, "sorted": 1}
        return self.tape.op_multi_out("TopK", [value, self.ints([count])], attributes, num_outputs=2)

    def ints(self, values: list[int]) -> Value:
        """A constant int64 vector, made once."""
        return self.constant(f"ints_{'_'.join(map(str, values))}", "int64", np.array(values, np.int64))

    def scalar(self, value: float) -> Value:
        """A constant in the graph's type, made once."""
        return self.constant(f"scalar_{value:.9g}", self.dtype, rounded(value, self.dtype))

    def values(self, name: str, values: Sequence[float], shape: tuple[int, ...]) -> Value:
        """A constant array in the graph's type, made once."""
        content = np.stack([rounded(value, self.dtype) for value in values])
        return self.constant(name, self.dtype, content.reshape(shape))

    def constant(self, name: str, dtype: str, content: np.ndarray) -> Value:
        """A constant inside the graph, made once. content: as it lies in memory."""
        if name not in self._constants:  # of the whole graph, in whose branch it may be asked for
            self._constants[name] = self._whole.constant(name, dtype, content)
        return self._constants[name]

    def start_rows(self, rows: Value) -> None:
        """Linear layers that follow have as many rows as `rows` [n, features]."""
        self._products.start_rows(rows)

    def linear(self, rows: Value, name: str) -> Value:
        """Project rows [n, in] -> [n, out] by a weight [out, in], or by a quantized one [in, out]."""
        weight = self.weights[f"{name}.weight"]
        bias = [self.weights[f"{name}.bias"]] if f"{name}.bias" in self.weights else []
        if f"{name}.scale" in self.weights:
            product = self._quantized_product(rows, name)
        elif self.exact_rows:
            product = self._product_by_row(rows, weight)
        else:
            return self.op("Gemm", rows, weight, *bias, transB=1)
        return self.op("Add", product, *bias) if bias else product

    def linear_of_each(self, rows: Value, name: str, count: int, shared: bool) -> Value:
        """Project rows -> [count, n, out], each of the modules of this name by its own weight. name:
        "beginning.module", of which they are called "beginning.0.module" and so on; shared: all have the
        same rows [n, in], else theirs of [count, n, in].
        """
        weight, bias = self._of_each(name, count)
        _, out, size = weight.shape
        if shared:  # one matrix: of a batch that is split again TensorRT keeps a second copy, in parts
            whole = self.op("Reshape", weight, self.ints([count * out, size]))
            product = self.op("Reshape", self.op("Gemm", rows, whole, transB=1), self.ints([-1, count, out]))
            product = self.op("Transpose", product, perm=[1, 0, 2])
        else:
            product = self.op("MatMul", rows, self.op("Transpose", weight, perm=[0, 2, 1]))
        return self.op("Add", product, self.op("Unsqueeze", bias, self.ints([1]))) if bias else product

    def linear_of_chosen(self, rows: Value, name: str, count: int, chosen: Value) -> Value:
        """Project rows [n, k or 1, 1, in] -> [n, k, 1, out] by the weights of those modules of `count` that
        are chosen [n, k], copies of them. name: see `linear_of_each`.
        """
        weight, bias = self._of_each(name, count)
        weights = self.op("Transpose", self.op("Gather", weight, chosen, axis=0), perm=[0, 1, 3, 2])
        product = self.op("MatMul", rows, weights)
        if not bias:
            return product
        return self.op("Add", product, self.op("Unsqueeze", self.op("Gather", bias, chosen), self.ints([2])))

    def _of_each(self, name: str, count: int) -> tuple[Value, Value | None]:
        """Weights [count, out, in] of the modules of one name, and biases [count, out] if they have some."""
        before, _, module = name.rpartition(".")
        names = [f"{before}.{index}.{module}" for index in range(count)]
        weight = self.weights.stacked(f"{name}.weight", [f"{each}.weight" for each in names])
        if f"{names[0]}.bias" not in self.weights:
            return weight, None
        return weight, self.weights.stacked(f"{name}.bias", [f"{each}.bias" for each in names])

    def _product_by_row(self, rows: Value, weight: Value) -> Value:
        """rows [n, in] times a weight [out, in] of floats, a product for each row."""
        last = self.ints([-1])
        return self.op("Squeeze", self.op("MatMul", weight, self.op("Unsqueeze", rows, last)), last)

    def _quantized_product(self, rows: Value, name: str) -> Value:
        """rows [n, in] times a quantized weight. In a branch the weight lies there too: ONNX Runtime
        fuses, and turns to uint8 where it must, what a graph holds itself.
        """
        parts = [f"{name}.{part}" for part in ("weight", "scale", "zero_point")]
        stored = [self.weights[part] for part in parts if part in self.weights]
        if self.tape is not self._whole:
            self.tape.weights += [value.name for value in stored]
        return self._products.product(rows, name, *stored)

    def embed(self, ids: Value) -> Value:
        """Rows [B, T, D] of token ids [B, T]."""
        table = self.weights["embed_tokens.weight"]
        if "embed_tokens.scale" not in self.weights:
            return self.op("Gather", table, ids)
        columns = self.op("Transpose", self.op("Gather", table, ids, axis=1), perm=[1, 2, 0])
        scales = self.op("Gather", self.weights["embed_tokens.scale"], ids)
        scales = self.op("Unsqueeze", scales, self.ints([-1]))
        rows = self.op("Mul", self.op("Cast", columns, to=FLOAT), scales)
        smoothing = "embed_tokens.smoothing"
        return self.op("Div", rows, self.weights[smoothing]) if smoothing in self.weights else rows

    def norm(self, value: Value, name: str, kind: str | None = None, epsilon: float | None = None) -> Value:
        """Normalize the last axis, with the named weight. kind, epsilon: None for those of the residual
        stream.
        """
        weight = self.weights[f"{name}.weight"]
        bias = [self.weights[f"{name}.bias"]] if f"{name}.bias" in self.weights else []
        return self.normalized(value, kind or self.config.norm.kind, weight, *bias, epsilon=epsilon)

    def normalized(self, value: Value, kind: str, *parameters: Value, epsilon: float | None = None) -> Value:
        """Normalize the last axis by these parameters: a weight, and a bias if there is one."""
        op_type = {"rms": "RMSNormalization", "layer": "LayerNormalization"}[kind]
        return self.op(op_type, value, *parameters, axis=-1, epsilon=epsilon or self.config.norm.epsilon)

    def scaled(self, value: Value, factor: float) -> Value:
        """Multiply by a factor that is not 1."""
        return value if factor == 1 else self.op("Mul", value, self.scalar(factor))

    def soft_capped(self, value: Value, cap: float | None) -> Value:
        """cap * tanh(value / cap)."""
        if cap is None:
            return value
        return self.op("Mul", self.op("Tanh", self.op("Mul", value, self.scalar(1 / cap))), self.scalar(cap))

    def rows(self, value: Value, features: int) -> Value:
        """Flatten [B, T, features] -> [B*T, features]."""
        return self.op("Reshape", value, self.ints([-1, features]))

    def batch_shape(self, value: Value, *features: int) -> Value:
        """The shape [B, T, *features] for a Reshape, B and T being the first two axes of
        `value`.
        """
        return self.op("Concat", self.op("Shape", value, start=0, end=2), self.ints(list(features)), axis=0)

    def gather_rows(self, hidden: Value, rows: Value) -> Value:
        """Gather rows of every sequence: hidden [B, T, D], rows [B, n] -> [B, n, D]."""
        return self.op("GatherND", hidden, self.op("Unsqueeze", rows, self.ints([-1])), batch_dims=1)
