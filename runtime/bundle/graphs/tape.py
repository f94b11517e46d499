"""A graph in the making: nodes in order, and the values that they join.

In: operators with their inputs. Out: nodes and constants, for `firp.runtime.bundle.graphs.onnx_file`
to write. A value without a name gets one when the graph is written.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from firp.runtime.bundle.dtypes import DTYPES

FLOAT = DTYPES["float32"].onnx_number  # what Cast makes


@dataclass(eq=False, slots=True)
class Value:
    """What a node makes, or a graph is given. shape: of weights and constants."""

    name: str | None = None
    shape: tuple[int, ...] = ()


@dataclass(eq=False, slots=True)
class Node:
    """One operator of the standard domain. attributes: int, float, str, Branch, or a list of ints each."""

    op_type: str
    inputs: list[Value]
    outputs: list[Value]
    attributes: dict[str, Any]


@dataclass(eq=False, slots=True)
class Branch:
    """A graph within a graph, that an If runs or not: it reads the values around it, and gives one.
    dtype, shape: of that one. weights: names of those that lie within it.
    """

    nodes: list[Node]
    output: Value
    dtype: str
    shape: tuple[int | str, ...]
    weights: list[str]


@dataclass(eq=False, slots=True)
class Constant:
    """An initializer that holds its values. dtype: a name in DTYPES."""

    value: Value
    dtype: str
    content: np.ndarray  # as it lies in memory


@dataclass(eq=False, slots=True)
class Tape:
    """Nodes and constants in the order in which they were made; of a branch, the names of its weights."""

    nodes: list[Node] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)

    def op(self, op_type: str, inputs: list[Value], attributes: dict[str, Any]) -> Value:
        """Add a node with one output."""
        return self.op_multi_out(op_type, inputs, attributes, num_outputs=1)[0]

    def op_multi_out(
        self, op_type: str, inputs: list[Value], attributes: dict[str, Any], num_outputs: int
    ) -> list[Value]:
        """Add a node with several outputs."""
        outputs = [Value() for _ in range(num_outputs)]
        self.nodes.append(Node(op_type, inputs, outputs, attributes))
        return outputs

    def constant(self, name: str, dtype: str, content: np.ndarray) -> Value:
        """Add a constant."""
        value = Value(name, content.shape)
        self.constants.append(Constant(value, dtype, content))
        return value
