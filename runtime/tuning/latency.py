"""Latency against rows on this device: what a step of any tree costs, predicted from a few measured
passes.

In: an engine. Out: a `LatencyTable`, milliseconds of each half of the model by rows of a pass.
Medians; the passes see a cache of `cached_tokens` tokens.
"""

import statistics

import numpy as np

from firp.runtime.bundle.calibration import LatencyTable
from firp.runtime.engine import Engine
from firp.runtime.passes.session import Session
from firp.runtime.progress import Progress, silent
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import TreeConfig, chain

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
CACHED_TOKENS = 256
TURNS, PASSES, WARM_UP = 5, 6, 3  # of each size


def measure_latency(engine: Engine, progress: Progress = silent) -> LatencyTable:
    """Time passes of growing size, up to one that costs more than any tree could win back. The
    sizes take turns, so that a busy moment of the machine falls on all of them; the first passes of
    a turn fill the processor's caches and do not count.
    """
    k, context, most, limits = (
        engine.manifest.num_predictors,
        engine.model.max_position_embeddings,
        max(ROWS),
        engine.limits,
    )
    if limits:
        context, most = min(context, limits.max_context), min(most, limits.max_rows)
    cached = min(CACHED_TOKENS, context // 2)
    with engine.sessions.lend(cached, most + k) as session:
        session.kv.fill(np.random.default_rng(0), cached)
        rows = _worth_measuring(session, [count for count in ROWS if count <= most], k)
        times: dict[int, list[dict[str, float]]] = {count: [] for count in rows}
        for turn in range(TURNS):
            progress("measuring latency", turn, TURNS)
            for count in rows:
                times[count] += [_pass_ms(session, count, draft=k > 0) for _ in range(PASSES)][WARM_UP:]
    params, prompt = SamplingParams(32, ignore_eos=True), list(range(min(16, engine.model.vocab_size)))
    tree = TreeConfig("dynamic", min(8, most // (1 + k)), None) if k else None
    outside = [_outside_ms(engine, prompt, params, each) for each in (None, tree)]
    progress("measuring latency", TURNS, TURNS)
    median = lambda graph, count: round(
        statistics.median(each[graph] for each in times[count] if graph in each), 4
    )  # noqa: E731
    return LatencyTable(
        device=engine.backend.device,
        prediction_layer=engine.manifest.prediction_layer,
        num_hidden_layers=engine.model.num_hidden_layers,
        cached_tokens=cached,
        rows=rows,
        lower_ms=tuple(median("lower", count) for count in rows),
        upper_ms=tuple(median("upper", count) for count in rows),
        predictors_ms=median("predictors", rows[-1]) if k else 0.0,
        plain_outside_ms=round(outside[0], 4),
        drafted_outside_ms=round(outside[1], 4),
    )


def _worth_measuring(session: Session, counts: list[int], num_predictors: int) -> tuple[int, ...]:
    rows, total = [], []
    for count in counts:
        for _ in range(WARM_UP):  # the second of a size may be captured as a CUDA graph, which takes long
            _pass_ms(session, count, draft=False)
        rows.append(count)
        total.append(sum(_pass_ms(session, count, draft=False).values()))
        if total[-1] > (num_predictors + 2) * total[0] and len(rows) > 1:
            break
    return tuple(rows)


def _pass_ms(session: Session, rows: int, draft: bool) -> dict[str, float]:
    """Milliseconds in each graph for a pass of so many rows; with `draft`, of the predictors in a
    draft pass after it too.
    """
    before = dict(session.spent_ms)
    session.forward(chain([1] * rows), [], logits=False)
    spent = {name: session.spent_ms[name] - before[name] for name in ("lower", "upper")}
    if draft:
        session.draft(rows - 1, 1)
        spent["predictors"] = session.spent_ms["predictors"] - before["predictors"]
    return spent


def _outside_ms(engine: Engine, prompt: list[int], params: SamplingParams, tree: TreeConfig | None) -> float:
    return statistics.median(
        step.times.outside_ms for step in engine.steps(prompt, params, tree) if step.rows
    )
