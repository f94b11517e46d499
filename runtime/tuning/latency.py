"""Latency against rows and cached tokens on this device: what a step of any tree costs, predicted
from a few measured passes.

In: an engine. Out: a `LatencyTable`, medians of milliseconds. Passes are made as decoding makes
them: no size comes twice in a row, pseudo rows ride along with trees, a row is committed after each,
so that no two passes see the same cache; rows have tokens of their own, and so experts of their own.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from firp.runtime.bundle.calibration import TYPICAL_CONTEXT, Grid, LatencyTable
from firp.runtime.engine import Engine
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.passes.request import Needs, Request
from firp.runtime.passes.session import Session
from firp.runtime.progress import Progress, silent
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import DraftTree, chain
from firp.runtime.trees.tree_config import CHAIN, TreeConfig

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
CONTEXTS = (128, 512, 2048)  # cached tokens, or three quarters of a context that is shorter
LONG_MATCH = 6  # drafts that a good match of prompt lookup may win
TURNS = (3, 5)  # of all sizes at one context: at least, and at most
SECONDS = 5.0  # for the turns of one context
WARM_UP = 2  # passes of a size before its first turn
OUTSIDE_TOKENS = 32  # decoded to time the loop


def measure_latency(
    engine: Engine, progress: Progress = silent, clock: Callable[[], float] = time.perf_counter
) -> LatencyTable:
    """Time passes of growing size, up to one that costs more than any tree could win back, after
    few and many cached tokens. Sizes take turns pass by pass, as long as there is time.
    """
    k = engine.manifest.num_predictors
    context = engine.context
    most = min(max(ROWS), engine.limits.max_rows) if engine.limits else max(ROWS)
    counts = [count for count in ROWS if count <= most]
    contexts = tuple(sorted({max(1, min(cached, 3 * context // 4)) for cached in CONTEXTS}))
    rows: tuple[int, ...] = ()
    grids: dict[str, list[tuple[float, ...]]] = {"lower": [], "upper": []}
    predictors_ms = []
    drift = 2 * len(counts)  # tokens that one turn commits at most
    capacity = min(contexts[-1] + drift, context)
    with engine.sessions.lend(Needs(capacity, most + k, most)) as session:
        for place, cached in enumerate(contexts):
            progress("measuring latency", place, len(contexts) + 1)
            session.batch.kv.fill(np.random.default_rng(0), cached)
            rows = rows or _worth_measuring(session, counts, max(k, LONG_MATCH))
            counts_above = sorted({*rows, 1 + k})  # at least one pass has pseudo rows, if any can
            plans = [plan for count in counts_above for plan in _plans(count, k)]
            spent = _take_turns(session, plans, cached, clock)
            for graph, grid in grids.items():
                grid.append(tuple(median_ms(spent[graph, count]) for count in rows))
            for (graph, _), times in spent.items():
                predictors_ms += times if graph == "predictors" else []
    progress("measuring latency", len(contexts), len(contexts) + 1)
    prompt = [token % engine.model.vocab_size for token in range(min(TYPICAL_CONTEXT, context // 2))]
    request = engine.request(prompt, SamplingParams(OUTSIDE_TOKENS, ignore_eos=True))
    if engine.manifest.quantization:
        drafts = TreeConfig.chain(k) if k else replace(TreeConfig.lookup(min(8, most)), kind=CHAIN)
    else:
        size = min(8, most // (1 + k))
        drafts = TreeConfig("dynamic", size, None) if k else TreeConfig.lookup(min(8, most))
    return LatencyTable(
        device=engine.backend.device,
        prediction_layer=engine.manifest.prediction_layer,
        num_hidden_layers=engine.model.num_hidden_layers,
        contexts=contexts,
        rows=rows,
        lower_ms=undisturbed(grids["lower"]),
        upper_ms=undisturbed(grids["upper"]),
        predictors_ms=median_ms(predictors_ms) if k else 0.0,
        plain_outside_ms=_outside_ms(engine, request, None),
        drafted_outside_ms=_outside_ms(engine, request, drafts),
    )


def random_rows(session: Session, rng: np.random.Generator, rows: int) -> DraftTree:
    """A chain of random tokens."""
    return chain(rng.integers(0, session.batch.model.vocab_size, rows).tolist())


def _plans(rows: int, num_predictors: int) -> list[PassPlan]:
    """Passes whose upper half has so many rows: all of a tree, and as many of them as can be pseudo
    rows. Tokens are drawn for each pass.
    """
    plans = [PassPlan(chain([0] * rows), bring_logits=False)]
    for tree_rows in range(-(-rows // (1 + num_predictors)), rows):
        sources, rest = divmod(rows - tree_rows, num_predictors)
        if not rest:
            tree = chain([0] * tree_rows)
            plans.append(PassPlan(tree, tuple(range(sources)), num_predictors, bring_logits=False))
            break
    return plans


def _take_turns(
    session: Session, plans: list[PassPlan], cached: int, clock: Callable[[], float]
) -> dict[tuple[str, int], list[float]]:
    """Milliseconds by graph, and rows that it computed, of passes after about so many cached tokens."""
    spent = defaultdict(list)
    ends = clock() + SECONDS
    order = np.random.default_rng(0)
    for turn in range(TURNS[1]):
        if turn >= TURNS[0] and clock() > ends:
            break
        for place in order.permutation(len(plans)):
            plan = plans[place]
            tree_rows = len(plan.tree.tokens)
            before = dict(session.spent_ms)
            session.forward(plan._replace(tree=random_rows(session, order, tree_rows)))
            session.commit([0])
            rows = {"lower": tree_rows, "upper": tree_rows + len(plan.sources) * plan.offsets}
            if plan.sources:
                rows["predictors"] = tree_rows
            for graph, count in rows.items():
                spent[graph, count].append(session.spent_ms[graph] - before[graph])
            if session.length >= min(cached + len(plans), session.capacity - 1):
                session.rewind(max(cached - len(plans), 1))
    return spent


def _worth_measuring(session: Session, counts: list[int], depth: int) -> tuple[int, ...]:
    """Row counts up to one that costs more than `depth` accepted drafts could win back."""
    rows = []
    total = []
    rng = np.random.default_rng(0)
    for count in counts:
        for _ in range(WARM_UP + 1):  # the second of a size may be captured as a CUDA graph, which takes long
            before = sum(session.spent_ms.values())
            session.forward(PassPlan(random_rows(session, rng, count), bring_logits=False))
        rows.append(count)
        total.append(sum(session.spent_ms.values()) - before)
        if total[-1] > (depth + 2) * total[0] and len(rows) > 1:
            break
    return tuple(rows)


def undisturbed(grid: Sequence[Sequence[float]]) -> Grid:
    """[contexts, rows] ms, both ascending: a pass of fewer rows, or after fewer cached tokens, takes no
    longer than another, and where it did, the machine had something else to do meanwhile.
    """
    times = np.array(grid)[::-1, ::-1]
    for axis in (0, 1):
        times = np.minimum.accumulate(times, axis)
    return tuple(map(tuple, times[::-1, ::-1].tolist()))


def median_ms(times: list[float]) -> float:
    """The median, to a tenth of a microsecond."""
    return round(statistics.median(times), 4)


def _outside_ms(engine: Engine, request: Request, tree: TreeConfig | None) -> float:
    steps = engine.steps(request, tree)
    return median_ms([step.times.outside_ms for step in steps if step.rows])
