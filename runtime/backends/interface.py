"""The contract of a backend: memory that its graphs can reach, and graphs that run on it.

A `Backend` loads graphs once and is shared by every session; `Memory` and `Runner`s belong to one
session. Arrays are written in place: a run allocates and copies nothing. Work is done in the order
in which it was asked for, but may be done later: `Memory.read` waits for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from firp.runtime.bundle.format import Bundle
from firp.runtime.bundle.graph_spec import GraphSpec
from firp.runtime.bundle.limits import Limits


class Array(Protocol):
    """A numpy array, or what stands for one on a device: C-contiguous, or a view of the leading
    rows of one that is.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, rows: int | slice) -> "Array":
        """A view along the first axis."""

    def reshape(self, *shape: int) -> "Array":
        """A view."""


class Memory(Protocol):
    """Arrays that graphs read and write, and the order of work on them."""

    free_reads: bool  # whether reading copies nothing, so that the loop may look at all it likes
    counters: dict[str, int]  # how runs were made, by the names in `LoadedGraphs.counters`

    def zeros(self, shape: tuple[int, ...], dtype: type, purpose: str) -> Array:
        """Memory for the life of the session, or until it is freed. Raises FirpError when the device has
        none left, with what each purpose takes.
        """

    def taken(self) -> frozenset[int]:
        """What `zeros` has taken, for `free`; nothing where arrays go when nobody holds them."""

    def free(self, taken: frozenset[int]) -> None:
        """Wait for everything asked for so far, and give arrays back that nobody uses any more."""

    def clear(self, array: Array) -> None:
        """Fill with zeros."""

    def touch(self, array: Array) -> None:
        """Fill with zeros what nobody has used so far, where the system gives memory only then."""

    def copy(self, source: Array, target: Array) -> None:
        """target[...] = source, of one size; the two do not overlap."""

    def write(self, array: Array, values: np.ndarray) -> None:
        """Copy from the host; `values` may change as soon as the call returns."""

    def write_bias(
        self,
        array: Array,
        visible: np.ndarray,
        positions: np.ndarray,
        cached: int,
        first: int,
        window: int | None,
    ) -> None:
        """`firp.runtime.backends.host.attention_bias` into an array [R, columns]."""

    def move_rows(self, source: Array, rows: Sequence[int], target: Array, start: int) -> None:
        """target[:, start:start+n] = source[:, rows]; the two do not overlap."""

    def move_slots(self, array: Array, slots: Sequence[int], start: int) -> None:
        """array[:, start:start+n] = array[:, slots]; slots ascend, none lies before its target."""

    def clear_slots(self, array: Array, start: int, stop: int) -> None:
        """array[:, start:stop] = 0."""

    def lay_out(self, array: Array, blocks: int, before: int, after: int, used: int, width: int) -> None:
        """Move blocks of `before` slots within a flat array, so that each has `after`: the first `used`
        slots of each, at most the fewer of both, are kept, the others are zeros. width: values of a
        slot.
        """

    def read(self, *arrays: Array) -> tuple[np.ndarray, ...]:
        """Wait for everything asked for so far; the arrays on the host, valid until the next
        read.
        """

    def slots_in_view(self, first: int, cached: int, capacity: int) -> range:
        """Slots of the KV buffer that a pass sees: at least [first, cached), which hold something that it
        needs, at most `capacity`.
        """

    def now(self) -> Any:
        """A moment in the order of work, for `elapsed_ms`, which is known after the next `read`."""

    def elapsed_ms(self, start: Any, end: Any) -> float: ...


@dataclass(eq=False)
class Binding:
    """The arrays of one run by name: exactly the declared inputs and outputs, each of the declared
    dtype. Where the same sizes will come again (`repeats`), a runner keeps what it prepared for
    them in `prepared`; it stays valid as long as the binding does.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    repeats: bool = False
    prepared: Any = None


class Runner(Protocol):
    """Runs one graph on the arrays of one session."""

    def run(self, binding: Binding) -> None:
        """Execute; the arrays stay as they are until the next `Memory.read`."""


class Graph(Protocol):
    """A loaded graph, shared by all sessions."""

    spec: GraphSpec
    native: Any  # what the backend's own library runs: a session of ONNX Runtime, an engine of TensorRT

    def runner(self, memory: Memory) -> Runner:
        """A new runner of this graph, for the session that owns the memory."""


class LoadedGraphs(NamedTuple):
    """Graphs of one bundle by name, with the limits that they were built for."""

    graphs: dict[str, Graph]
    # what a session can hold; such sessions are all alike and kept. None: sessions are made to
    # measure
    limits: Limits | None
    counters: tuple[str, ...] = ()  # names of what each `Memory` counts


class Backend(Protocol):
    """A library on a device that loads and runs graphs."""

    name: str
    device: str

    def load(self, bundle: Bundle, check_hashes: bool) -> LoadedGraphs:
        """The bundle's graphs. Raises FirpError when one cannot be loaded, or is not what the
        bundle declares.
        """

    def memory(self) -> Memory:
        """Memory for one session."""
