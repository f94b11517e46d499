"""Latency of passes that several sequences share, on this device: what rows cost under load.

In: an engine, and its table of one sequence. Out: `BatchTimes`, medians of milliseconds. Few sizes, at
the shorter contexts: between them the table is linear.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from firp.runtime.bundle.calibration import BatchTimes, LatencyTable
from firp.runtime.engine import Engine
from firp.runtime.passes.pass_plan import PREFILL_ROWS, PassPlan
from firp.runtime.passes.pass_shape import BatchSize
from firp.runtime.passes.session import Session, forward_together
from firp.runtime.progress import Progress, silent
from firp.runtime.tuning.latency import WARM_UP, median_ms, random_rows, undisturbed

SEQUENCES = (2, 4, 8)
ROWS = (1, 2, 4, 8, 16, 32)  # of each sequence, while all together are no more than one was measured with
CONTEXTS = 2  # of those that one was measured at, the first ones
TURNS = (3, 5)  # of all sizes: at least, and at most
SECONDS = 2.0  # for the turns of one number of sequences at one context


def measure_batches(
    engine: Engine,
    latency: LatencyTable,
    progress: Progress = silent,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[BatchTimes, ...]:
    """Time passes of 2, 4 and 8 sequences, as many as the engine takes, of texts of one length."""
    most = engine.limits.max_batch if engine.limits else max(SEQUENCES)
    counts = [count for count in SEQUENCES if count <= most]
    if not counts:
        return ()
    contexts = latency.contexts[:CONTEXTS]
    widest = latency.rows[-1]
    fitting = {count: tuple(rows for rows in ROWS if rows == 1 or rows * count <= widest) for count in counts}
    most_rows = max(count * rows[-1] for count, rows in fitting.items())
    drift = len(ROWS) * (WARM_UP + TURNS[1])  # tokens that each sequence commits at most
    capacity = min(contexts[-1] + drift, engine.context)
    batch = engine.sessions.batch(_size(engine, counts[-1], capacity, most_rows))
    lanes = [Session(batch, lane) for lane in range(counts[-1])]
    found = []
    for place, count in enumerate(counts):
        progress("measuring batches", place, len(counts))
        grids: dict[str, list[tuple[float, ...]]] = {"lower": [], "upper": []}
        for cached in contexts:
            batch.kv.fill(np.random.default_rng(0), max(1, min(cached, capacity - drift)))
            spent = _take_turns(lanes[:count], fitting[count], clock)
            for graph, grid in grids.items():
                grid.append(tuple(median_ms(spent[graph, rows]) for rows in fitting[count]))
        halves = undisturbed(grids["lower"]), undisturbed(grids["upper"])
        found.append(BatchTimes(count, contexts, fitting[count], *halves))
    progress("measuring batches", len(counts), len(counts))
    return tuple(found)


def _size(engine: Engine, sequences: int, capacity: int, rows: int) -> BatchSize:
    """Memory for passes of so many rows, all sequences together."""
    k, limits = engine.manifest.num_predictors, engine.limits
    if limits:
        rows, capacity = sequences * max(1 + k, limits.max_rows), limits.max_context
    return BatchSize(capacity, max(rows, PREFILL_ROWS + k), rows, sequences)


def _take_turns(
    lanes: Sequence[Session], rows: Sequence[int], clock: Callable[[], float]
) -> dict[tuple[str, int], list[float]]:
    """Milliseconds by graph, and rows of each sequence, in turns."""
    spent = defaultdict(list)
    order = np.random.default_rng(0)
    for count in rows:
        for _ in range(WARM_UP):
            _pass(lanes, count, order)
    ends = clock() + SECONDS
    for turn in range(TURNS[1]):
        if turn >= TURNS[0] and clock() > ends:
            break
        for count in order.permutation(rows).tolist():
            before = dict(lanes[0].spent_ms)
            _pass(lanes, count, order)
            for graph in ("lower", "upper"):
                spent[graph, count].append(lanes[0].spent_ms[graph] - before[graph])
    return spent


def _pass(lanes: Sequence[Session], rows: int, rng: np.random.Generator) -> None:
    trees = [random_rows(session, rng, rows) for session in lanes]
    forward_together(lanes, [PassPlan(tree, bring_logits=False) for tree in trees])
    for session in lanes:
        session.commit([0])
