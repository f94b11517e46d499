"""What the loop asks of a backend: memory that its graphs can reach, and graphs that run on it.

A `Backend` loads graphs once and is shared by every session; a `Runner` belongs to one session, remembers what it last bound
and rebinds only what changed. Arrays are passed by name and written in place: a run allocates and copies nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from firp.runtime.graph_spec import GraphSpec


class Runner(Protocol):
    def run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """Execute on exactly the declared inputs, into exactly the declared outputs; each array C-contiguous, its dtype as
        declared, its memory owned by the caller and untouched until the call returns.
        """


class Graph(Protocol):
    spec: GraphSpec

    def runner(self) -> Runner:
        """A new runner of this graph, for one session."""


class Backend(Protocol):
    name: str
    device: str

    def load(self, path: Path, spec: GraphSpec) -> Graph:
        """Raises BundleError when the file cannot be loaded, or is not the graph that `spec` declares."""
