"""Products of rows with quantized weights, as nodes of a graph.

In: rows of floats, and what is stored of a weight in one of the formats of
`firp.runtime.bundle.precision`. Out: the product in floats. Nodes are few on purpose: where weights
stream through the caches, each costs microseconds, however little it computes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from firp.runtime.bundle.graphs.tape import Tape, Value
from firp.runtime.bundle.precision import (
    BLOCK,
    DIGITS,
    FINE_ROWS,
    OFFSET_BLOCKS4,
    ROW_FORMATS,
    ROWS,
    digit_blocks,
)

ACTIVATION_LEVELS = 127  # int8 on either side of zero
FINER = 2 * ACTIVATION_LEVELS  # times, that the step of the second byte is as small
_ZERO_POINT = 128  # of activations in uint8, which ONNX Runtime multiplies with int8 weights faster


class Nodes(Protocol):
    """What adds nodes and constants to a graph; see `GraphBuilder`."""

    tape: Tape

    def op(self, op_type: str, *inputs: Value, **attributes: Any) -> Value: ...

    def ints(self, values: list[int]) -> Value: ...

    def scalar(self, value: float) -> Value: ...

    def constant(self, name: str, dtype: str, content: np.ndarray) -> Value: ...


class QuantizedProducts:
    """The products of one graph. formats: of its quantized weights, by their names; others are rows."""

    def __init__(self, nodes: Nodes, formats: Mapping[str, str]):
        self._nodes = nodes
        self._formats = formats
        self._rows: Value | None = None
        self._of_rows: dict[str, Value] = {}  # what depends on the number of rows alone

    def start_rows(self, rows: Value) -> None:
        """Products that follow have as many rows as `rows` [n, features]."""
        self._rows, self._of_rows = rows, {}

    @contextmanager
    def other_rows(self, rows: Value) -> Iterator[None]:
        """Products within have as many rows as `rows`, those after it as many as before."""
        before = self._rows, self._of_rows
        self.start_rows(rows)
        yield
        self._rows, self._of_rows = before

    def product(self, rows: Value, name: str, weight: Value, scale: Value, *zero_point: Value) -> Value:
        """rows [n, in] f32 times a weight [in, out], which has this name: [n, out] f32."""
        form = self._formats.get(name, ROWS)
        if form in ROW_FORMATS:
            return (self._fine if form == FINE_ROWS else self._integer)(rows, weight, scale)
        if form == OFFSET_BLOCKS4:
            rows = self._with_sums(rows, scale.shape[0])
        blocks = self._nodes.op("DequantizeLinear", weight, scale, *zero_point, axis=0, block_size=BLOCK)
        return self._nodes.op("MatMul", rows, blocks)

    def _with_sums(self, rows: Value, blocks: int) -> Value:
        """Rows with the sums of their blocks behind them, once for each digit of the offsets. blocks: of
        the weight, with those of the digits.
        """
        op, ints = self._nodes.op, self._nodes.ints
        own = blocks - DIGITS * digit_blocks(blocks)
        sums = op("ReduceSum", op("Reshape", rows, ints([-1, own, BLOCK])), ints([-1]), keepdims=0)
        left = digit_blocks(blocks) * BLOCK - own
        digit = [sums, self._zeros(left)] if left else [sums]
        return op("Concat", rows, *digit * DIGITS, axis=1)

    def _zeros(self, width: int) -> Value:
        """Zeros [n, width]."""
        op, ints = self._nodes.op, self._nodes.ints
        name = f"zeros_{width}"
        if name not in self._of_rows:
            shape = op("Concat", self._count(), ints([width]), axis=0)
            self._of_rows[name] = op("Expand", self._nodes.scalar(0.0), shape)
        return self._of_rows[name]

    def _integer(self, rows: Value, weight: Value, scale: Value) -> Value:
        """rows [n, in] f32 times weight [in, out] i8 times scale [out]. Each row is rounded to int8 on
        a scale of its own, so its product does not depend on the others. A row of zeros has the scale
        0: whatever it is rounded to, its product is 0.
        """
        op = self._nodes.op
        steps = self._row_steps(rows, keepdims=0)
        integers = op("QuantizeLinear", rows, steps, self._zero_points(), axis=0)
        sums = op("MatMulInteger", integers, weight, self._zero_point())
        return op("Mul", op("DequantizeLinear", sums, steps, axis=0), scale)

    def _fine(self, rows: Value, weight: Value, scale: Value) -> Value:
        """The same with inputs of two bytes: what rounding leaves of a row, at most half a step, is a row
        of its own, on a step that is FINER times as small.
        """
        op = self._nodes.op
        step = self._row_steps(rows, keepdims=1)
        scaled = op("Div", rows, step)
        whole = op("Round", scaled)
        both = op("Concat", whole, op("Sub", scaled, whole), axis=0)  # [2 n, in]
        steps, zero_points = self._halves()
        integers = op("QuantizeLinear", both, steps, zero_points, axis=0)
        sums = op("MatMulInteger", integers, weight, self._zero_point())
        made = [op("DequantizeLinear", sums, steps, axis=0)]
        halves = self._nodes.tape.op_multi_out("Split", made, {"axis": 0, "num_outputs": 2}, num_outputs=2)
        return op("Mul", op("Mul", op("Add", *halves), step), scale)

    def _row_steps(self, rows: Value, keepdims: int) -> Value:
        """What an integer step of each row is, [n], or [n, 1] with keepdims."""
        op = self._nodes.op
        largest = op("ReduceMax", op("Abs", rows), self._nodes.ints([-1]), keepdims=keepdims)
        return op("Mul", largest, self._nodes.scalar(1 / ACTIVATION_LEVELS))

    def _halves(self) -> tuple[Value, Value]:
        """Steps and zero points [2 n] of whole numbers, and of what rounding left."""
        op = self._nodes.op
        if "steps" not in self._of_rows:
            both = self._nodes.constant("halves", "float32", np.array([[1], [1 / FINER]], np.float32))
            steps = op("Expand", both, self._count())  # [2, n]
            self._of_rows["steps"] = op("Reshape", steps, self._nodes.ints([-1]))
            self._of_rows["both"] = op("Concat", self._zero_points(), self._zero_points(), axis=0)
        return self._of_rows["steps"], self._of_rows["both"]

    def _zero_points(self) -> Value:
        """Of rows of activations, [n]."""
        if "zero_points" not in self._of_rows:
            self._of_rows["zero_points"] = self._nodes.op("Expand", self._zero_point(), self._count())
        return self._of_rows["zero_points"]

    def _zero_point(self) -> Value:
        return self._nodes.constant("zero_point", "uint8", np.array(_ZERO_POINT, np.uint8))

    def _count(self) -> Value:
        """n, as a shape."""
        if "count" not in self._of_rows:
            self._of_rows["count"] = self._nodes.op("Shape", self._rows, start=0, end=1)
        return self._of_rows["count"]
