"""One ONNX graph in the making (opset 24, standard operators).

In: nodes to add, by operator; weights, by name. Out: the values that they make, and the tape that
holds nodes and initializers. A linear layer has a bias where the weight table holds one.
"""

from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.model_config import ModelConfig


class Weights(Protocol):
    """Initializers of one graph, by the names of the weights."""

    def __contains__(self, name: str) -> bool: ...

    def __getitem__(self, name: str) -> ir.Value:
        """The initializer of a weight, the same one each time."""


class GraphBuilder:
    """Adds nodes to one graph; `op` returns a node's output. dtype: of what the graph computes."""

    def __init__(self, config: ModelConfig, dtype: str, weights: Weights):
        self.config = config
        self.weights = weights
        self.dtype = onnx_dtype(dtype)
        self.tape = Tape()
        self._constants: dict[str, ir.Value] = {}

    def op(self, op_type: str, *inputs: ir.Value, output: str | None = None, **attributes: Any) -> ir.Value:
        """Add one node; return its only output, named `output` if given."""
        value = self.tape.op(op_type, list(inputs), attributes or None)
        if output:
            value.name = output
        return value

    def split(self, value: ir.Value, sizes: list[int], axis: int = -1) -> list[ir.Value]:
        """Split a value along an axis."""
        inputs = [value, self.ints(sizes)]
        return list(self.tape.op_multi_out("Split", inputs, {"axis": axis}, num_outputs=len(sizes)))

    def ints(self, values: list[int]) -> ir.Value:
        """A constant int64 vector, made once."""
        return self.constant(f"ints_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def scalar(self, value: float) -> ir.Value:
        """A constant in the graph's type, made once."""
        return self.constant(f"scalar_{value:.9g}", np.array(value, self.dtype.numpy()))

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A constant inside the graph, made once."""
        if name not in self._constants:
            self._constants[name] = self.tape.initializer(ir.tensor(array, name=name))
        return self._constants[name]

    def linear(self, rows: ir.Value, name: str) -> ir.Value:
        """Project rows [n, in] -> [n, out] by a weight [out, in]."""
        inputs = [rows, self.weights[f"{name}.weight"]]
        if f"{name}.bias" in self.weights:
            inputs.append(self.weights[f"{name}.bias"])
        return self.op("Gemm", *inputs, transB=1)

    def norm(self, value: ir.Value, name: str) -> ir.Value:
        """Normalize the last axis by root mean square, with the named weight."""
        weight = self.weights[f"{name}.weight"]
        epsilon = self.config.norm.epsilon
        return self.op("RMSNormalization", value, weight, axis=-1, epsilon=epsilon)

    def rows(self, value: ir.Value, features: int) -> ir.Value:
        """Flatten [B, T, features] -> [B*T, features]."""
        return self.op("Reshape", value, self.ints([-1, features]))

    def batch_shape(self, value: ir.Value, *features: int) -> ir.Value:
        """The shape [B, T, *features] for a Reshape, B and T being the first two axes of
        `value`.
        """
        return self.op("Concat", self.op("Shape", value, start=0, end=2), self.ints(list(features)), axis=0)

    def gather_rows(self, hidden: ir.Value, rows: ir.Value) -> ir.Value:
        """Gather rows of every sequence: hidden [B, T, D], rows [B, n] -> [B, n, D]."""
        return self.op("GatherND", hidden, self.op("Unsqueeze", rows, self.ints([-1])), batch_dims=1)


def onnx_dtype(dtype: str) -> ir.DataType:
    """ONNX's type of that name."""
    return ir.DataType[DTYPES[dtype].onnx]
