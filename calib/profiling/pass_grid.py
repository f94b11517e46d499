"""Latency of each graph over a grid of rows x cached tokens x batch.

In: a target (polygraphy's runners on one backend), the declared graphs, the grid. Out: one
`PassTime` a point: median and quartiles, what the pass costs, and how much of the device's peaks it
reached.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np

from firp.calib.targets.cost import Cost, Peaks, Point, Roofline, dimensions, pass_cost, roofline
from firp.calib.targets.layer_times import LayerTime
from firp.runtime.backends.host import attention_bias
from firp.runtime.bundle.format import Manifest
from firp.runtime.bundle.graph_spec import GraphSpec
from firp.runtime.bundle.limits import Limits
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.progress import Progress

TURNS, WARM_UP, PASSES = 4, 2, 6  # of each point
TURN_MS = 2000.0  # a slow pass is repeated less often: a turn ends after the first pass beyond this
Feed = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


class Target(Protocol):
    """Polygraphy's runners on one backend."""

    device: str
    limits: Limits | None  # what its engines hold; None where nothing is built for a size

    def engine(self) -> Engine:
        """The runtime on this backend."""

    def check(self, graph: str, shapes: Shapes) -> None:
        """Raises FirpError for inputs that the backend's graph does not take."""

    def peaks(self) -> Peaks:
        """What this device reaches."""

    def timer(self, graph: str) -> AbstractContextManager[Callable[[Feed], float]]:
        """A function that runs one pass and says how many milliseconds it took."""

    def layer_times(self, graph: str, feed: Feed, warm_up: int, passes: int) -> list[LayerTime]:
        """Of every layer of a graph; empty where the backend cannot tell."""

    def runner(
        self,
        graph: str,
        layer_outputs: tuple[str, ...],
        report: Callable[[float], None],
        cancel: threading.Event,
    ) -> Any:
        """polygraphy's runner of the graph as it runs; with layer outputs, of one made from the
        same file that gives these too. report, cancel: as for `build_plan`.
        """


class Spread(NamedTuple):
    low: float  # lower quartile
    median: float
    high: float  # upper quartile

    @staticmethod
    def of(values: list[float]) -> "Spread":
        return (
            Spread(*statistics.quantiles(values, n=4, method="inclusive"))
            if len(values) > 1
            else Spread(*values * 3)
        )


@dataclass(frozen=True)
class PassTime:
    graph: str
    batch: int
    cached_tokens: int  # 0 for a graph that reads no cache
    rows: int  # T of the lower graph and the predictors, R of the upper one
    median_ms: float
    low_ms: float  # quartiles
    high_ms: float
    passes: int  # measured
    cost: Cost
    roofline: Roofline


class FeedMaker:
    """Inputs for one graph and one batch size; the cache is made once, and every point reads views
    of it, as a session does.
    """

    def __init__(self, spec: GraphSpec, manifest: Manifest, batch: int, cached_tokens: int):
        self._spec, self._model, self._k = spec, manifest.model, manifest.num_predictors
        self._rng = np.random.default_rng(0)
        dims = dimensions(spec.name, Point(1, cached_tokens, batch), self._k)
        self._past = {
            tensor.name: self._normal(tensor.sizes(dims), tensor.dtype) * 0.1 for tensor in spec.past
        }

    def feed(self, point: Point) -> dict[str, np.ndarray]:
        """Arrays as the graph declares them: random hidden states and tokens, causal rows after a
        cache in full view.
        """
        rows, cached, batch = point
        dims = dimensions(self._spec.name, point, self._k)
        positions = np.arange(cached, cached + rows)  # [rows]
        made = {}
        for tensor in self._spec.inputs:
            shape = tensor.sizes(dims)
            if tensor.name in self._past:
                made[tensor.name] = self._past[tensor.name][:cached]
            elif tensor.name == "input_ids":
                made[tensor.name] = self._rng.integers(0, self._model.vocab_size, shape)
            elif tensor.name == "hidden_states":
                made[tensor.name] = self._normal(shape, tensor.dtype)
            elif tensor.name == "attention_bias":
                made[tensor.name] = np.repeat(self._causal(positions, tensor.dtype), batch, axis=0)
            else:
                # source_rows, logits_rows
                of_a_sequence = positions if tensor.name == "position_ids" else np.arange(rows)
                made[tensor.name] = np.repeat(of_a_sequence[None], batch, axis=0)  # [B, rows]
        return made

    def _causal(self, positions: np.ndarray, dtype: str) -> np.ndarray:
        rows, cached = len(positions), int(positions[0])
        bias = np.empty((rows, cached + rows), numpy_dtype(dtype))
        attention_bias(np.tri(rows, dtype=bool), positions, cached, self._model.sliding_window, bias)
        return bias[None, None]

    def _normal(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return self._rng.standard_normal(shape, np.float32).astype(numpy_dtype(dtype), copy=False)


def numpy_dtype(dtype: str) -> np.dtype:
    """That of an array in host memory: bfloat16 is float32 there, and is cut where it goes to the
    device.
    """
    return np.dtype("float32" if dtype == "bfloat16" else dtype)


def check_grid(target: Target, manifest: Manifest, points: Iterable[Point]) -> None:
    """Raises FirpError when the backend cannot run one of them."""
    for point in points:
        for name, spec in manifest.graphs.items():
            dims = dimensions(name, point, manifest.num_predictors)
            target.check(name, {tensor.name: tensor.sizes(dims) for tensor in spec.inputs})


def check_memory(manifest: Manifest, points: Iterable[Point], available: int | None) -> None:
    """Raises FirpError when inputs and outputs of a pass, made once and held once more by what runs
    it, do not fit. available: in bytes; None is not checked.
    """
    points = list(points)
    needed = 2 * max(
        sum(
            prod(tensor.sizes(dimensions(name, point, manifest.num_predictors)))
            for tensor in (*spec.inputs, *spec.outputs)
        )
        * 4
        for point in points
        for name, spec in manifest.graphs.items()
    )
    if available is not None and needed > available:
        got, expected = (f"{size / 2**30:.2f} GiB" for size in (available, needed))
        raise FirpError(
            "not enough memory for the grid",
            got=f"{got} free",
            expected=expected,
            fix="smaller --batch or --cached",
        )


def measure_grid(
    target: Target, manifest: Manifest, points: Iterable[Point], peaks: Peaks, progress: Progress
) -> tuple[PassTime, ...]:
    """Time every point for every graph. The points take turns, so that a busy moment of the machine
    falls on all of them.
    """
    points, measured = list(points), []
    for done, (name, spec) in enumerate(manifest.graphs.items()):
        progress(f"measuring {name}", done, len(manifest.graphs))
        of_graph = {point if spec.cache else point._replace(cached_tokens=0) for point in points}
        times = _graph_times(
            target, name, spec, manifest, sorted(of_graph, key=lambda p: (p.batch, p.cached_tokens, p.rows))
        )
        for point, values in times.items():
            cost = pass_cost(manifest, name, point)
            low, median, high = Spread.of(values)
            share = roofline(cost, median, peaks)
            measured.append(
                PassTime(
                    name,
                    point.batch,
                    point.cached_tokens,
                    point.rows,
                    median,
                    low,
                    high,
                    len(values),
                    cost,
                    share,
                )
            )
    progress("measured", len(manifest.graphs), len(manifest.graphs))
    return tuple(measured)


def _graph_times(
    target: Target, name: str, spec: GraphSpec, manifest: Manifest, points: list[Point]
) -> dict[Point, list[float]]:
    times: dict[Point, list[float]] = {point: [] for point in points}
    with target.timer(name) as pass_ms:
        for batch in sorted({point.batch for point in points}):
            of_batch = [point for point in points if point.batch == batch]
            feeds = FeedMaker(spec, manifest, batch, max(point.cached_tokens for point in of_batch))
            for _ in range(TURNS):
                for point in of_batch:
                    times[point] += _turn(pass_ms, feeds.feed(point))
    return times


def _turn(pass_ms: Callable[[Feed], float], feed: Feed) -> list[float]:
    """Passes of one point; those that fill the processor's caches do not count."""
    started = time.perf_counter()
    for _ in range(WARM_UP):
        pass_ms(feed)
    times = []
    while len(times) < PASSES and (not times or (time.perf_counter() - started) * 1e3 < TURN_MS):
        times.append(pass_ms(feed))
    return times
