"""Latency of each graph over a grid of rows x cached tokens x batch.

In: a target (polygraphy's runners on one backend), the declared graphs, the grid. Out: one
`PassTime` a point: median and quartiles, what the pass costs, and how much of the device's peaks it
reached.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from firp.calib.targets.cost import Cost, Peaks, Point, Roofline, dimensions, pass_cost, roofline
from firp.calib.targets.feeds import FeedMaker
from firp.calib.targets.interface import Feed, Target
from firp.runtime.bundle.format import Manifest
from firp.runtime.bundle.graph_spec import GraphSpec
from firp.runtime.machine import require_bytes
from firp.runtime.progress import Progress

TURNS = 4  # of a point
WARM_UP = 2  # passes of a turn that do not count
PASSES = 6  # of a turn that count
TURN_MS = 2000.0  # a slow pass is repeated less often: a turn ends after the first pass beyond this


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


def check_grid(target: Target, manifest: Manifest, points: Iterable[Point]) -> None:
    """Raises FirpError when the backend cannot run one of them."""
    for point in points:
        for name, spec in target.graphs.items():
            dims = dimensions(name, point, manifest)
            target.check(name, {tensor.name: tensor.sizes(dims) for tensor in spec.inputs})


def require_grid_memory(manifest: Manifest, points: Iterable[Point], available: int | None) -> None:
    """Raises FirpError when inputs and outputs of a pass, made once and held once more by what runs
    it, do not fit. available: in bytes; None is not checked.
    """
    values = max(
        sum(prod(tensor.sizes(dimensions(name, point, manifest))) for tensor in (*spec.inputs, *spec.outputs))
        for point in points
        for name, spec in manifest.graphs.items()
    )
    require_bytes(
        "not enough memory for the grid", {"arrays": 2 * 4 * values}, available, "smaller --batch or --cached"
    )


def measure_grid(
    target: Target, manifest: Manifest, points: Iterable[Point], peaks: Peaks, progress: Progress
) -> tuple[PassTime, ...]:
    """Time every point for every graph. The points take turns, so that a busy moment of the machine
    falls on all of them.
    """
    points = list(points)
    measured = []
    for done, (name, spec) in enumerate(target.graphs.items()):
        progress(f"measuring {name}", done, len(target.graphs))
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
    progress("measured", len(target.graphs), len(target.graphs))
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
