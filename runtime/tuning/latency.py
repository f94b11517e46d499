"""Latency against rows on this device: what a step of any tree costs, predicted from a few measured
passes.

In: an engine. Out: a `LatencyTable`, milliseconds of each half of the model by rows of a pass.
Medians; the passes see a cache of `cached_tokens` tokens.
"""

import statistics

import numpy as np

from firp.runtime.bundle.calibration import LatencyTable
from firp.runtime.engine import Engine
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.passes.request import Needs, Request
from firp.runtime.passes.session import Session
from firp.runtime.progress import Progress, silent
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import TreeConfig, chain

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
CACHED_TOKENS = 256
LONG_MATCH = 6  # drafts that a good match of prompt lookup may win
# of each size
TURNS = 5
PASSES = 6
WARM_UP = 3


def measure_latency(engine: Engine, progress: Progress = silent) -> LatencyTable:
    """Time passes of growing size, up to one that costs more than any tree could win back. The
    sizes take turns, so that a busy moment of the machine falls on all of them; the first passes of
    a turn fill the processor's caches and do not count.
    """
    k = engine.manifest.num_predictors
    context = engine.model.max_position_embeddings
    most = max(ROWS)
    limits = engine.limits
    if limits:
        context = min(context, limits.max_context)
        most = min(most, limits.max_rows)
    cached = min(CACHED_TOKENS, context // 2)
    with engine.sessions.lend(Needs(cached, most + k, most)) as session:
        session.kv.fill(np.random.default_rng(0), cached)
        rows = _worth_measuring(session, [count for count in ROWS if count <= most], max(k, LONG_MATCH))
        times: dict[int, list[dict[str, float]]] = {count: [] for count in rows}
        for turn in range(TURNS):
            progress("measuring latency", turn, TURNS)
            for count in rows:
                times[count] += [_pass_ms(session, count, draft=k > 0) for _ in range(PASSES)][WARM_UP:]
    prompt = list(range(min(16, engine.model.vocab_size)))
    request = engine.request(prompt, SamplingParams(32, ignore_eos=True))
    drafts = TreeConfig("dynamic", min(8, most // (1 + k)), None) if k else TreeConfig.lookup(min(8, most))
    progress("measuring latency", TURNS, TURNS)

    def median(graph: str, count: int) -> float:
        return round(statistics.median(spent[graph] for spent in times[count] if graph in spent), 4)

    return LatencyTable(
        device=engine.backend.device,
        prediction_layer=engine.manifest.prediction_layer,
        num_hidden_layers=engine.model.num_hidden_layers,
        cached_tokens=cached,
        rows=rows,
        lower_ms=tuple(median("lower", count) for count in rows),
        upper_ms=tuple(median("upper", count) for count in rows),
        predictors_ms=median("predictors", rows[-1]) if k else 0.0,
        plain_outside_ms=round(_outside_ms(engine, request, None), 4),
        drafted_outside_ms=round(_outside_ms(engine, request, drafts), 4),
    )


def _worth_measuring(session: Session, counts: list[int], depth: int) -> tuple[int, ...]:
    """Row counts up to one that costs more than `depth` accepted drafts could win back."""
    rows = []
    total = []
    for count in counts:
        for _ in range(WARM_UP):  # the second of a size may be captured as a CUDA graph, which takes long
            _pass_ms(session, count, draft=False)
        rows.append(count)
        total.append(sum(_pass_ms(session, count, draft=False).values()))
        if total[-1] > (depth + 2) * total[0] and len(rows) > 1:
            break
    return tuple(rows)


def _pass_ms(session: Session, rows: int, draft: bool) -> dict[str, float]:
    """Milliseconds in each graph for a pass of so many rows; with `draft`, of the predictors in a
    draft pass after it too.
    """
    before = dict(session.spent_ms)
    session.forward(PassPlan(chain([1] * rows), bring_logits=False))
    spent = {name: session.spent_ms[name] - before[name] for name in ("lower", "upper")}
    if draft:
        session.draft(rows - 1, 1)
        spent["predictors"] = session.spent_ms["predictors"] - before["predictors"]
    return spent


def _outside_ms(engine: Engine, request: Request, tree: TreeConfig | None) -> float:
    steps = engine.steps(request, tree)
    return statistics.median(step.times.outside_ms for step in steps if step.rows)
