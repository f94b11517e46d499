"""The contract of a backend for profiling and comparison: polygraphy's runners of a bundle's
graphs.

In: graph names, shapes, arrays. Out: milliseconds, times of layers, runners. `open_target` makes
the target of a backend.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from firp.calib.targets.cost import Peaks
from firp.calib.targets.layer_times import LayerTime
from firp.runtime.bundle.graph_spec import GraphSpec
from firp.runtime.bundle.limits import Limits
from firp.runtime.engine import Engine

Feed = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


class Target(Protocol):
    """Polygraphy's runners on one backend."""

    device: str
    graphs: Mapping[str, GraphSpec]  # by name, as this backend runs them
    limits: Limits | None  # what its plans hold; None where nothing is built for a size

    def engine(self) -> Engine:
        """The runtime on this backend."""

    def check(self, graph: str, shapes: Shapes) -> None:
        """Raises FirpError for inputs that the backend's graph does not take."""

    def peaks(self) -> Peaks:
        """Peaks that this device reaches."""

    def timer(self, graph: str) -> AbstractContextManager[Callable[[Feed], float]]:
        """A function that runs one pass and says how many milliseconds it took."""

    def layer_times(self, graph: str, feed: Feed, warm_up: int, passes: int) -> list[LayerTime]:
        """Times of every layer of a graph; empty where the backend cannot tell."""

    def runner(
        self,
        graph: str,
        layer_outputs: tuple[str, ...],
        report: Callable[[float], None],
        cancel: threading.Event,
    ) -> Any:
        """A runner of polygraphy's for the graph as it runs; with layer outputs, of one made from
        the same file that gives these too. report, cancel: as for `build_plan`.
        """
