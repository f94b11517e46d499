"""Latency against rows on this device: what a step of any tree costs, predicted from a few measured passes.

In: an engine. Out: a `LatencyTable`, milliseconds of each half of the model by rows of a pass. Medians; the passes see a cache of
`cached_tokens` tokens.
"""

import statistics
from collections.abc import Callable

import numpy as np

from firp.runtime.choice import LatencyTable
from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams
from firp.runtime.session import Session
from firp.runtime.tree import TreeConfig, chain

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
CACHED_TOKENS = 256
REPEATS = 15


def measure_latency(engine: Engine, progress: Callable[[str, int, int], None] = lambda *_: None) -> LatencyTable:
    """Time passes of growing size, until one costs more than any tree could win back."""
    k, context = engine.manifest.num_predictors, engine.model.max_position_embeddings
    cached = min(CACHED_TOKENS, context // 2)
    session = engine.session(cached + max(ROWS), max(ROWS) + k)
    session.kv.slots[:] = np.random.default_rng(0).standard_normal(session.kv.slots.shape[1:]) * 0.1
    session.kv.length = cached
    rows, lower, upper = [], [], []
    for index, count in enumerate(ROWS):
        progress("measuring latency", index, len(ROWS))
        rows.append(count)
        times = _pass_times(session, count, REPEATS)
        lower.append(times["lower"])
        upper.append(times["upper"])
        if index and lower[-1] + upper[-1] > (k + 2) * (lower[0] + upper[0]):
            break
    predictors = _predictor_ms(session) if k else 0.0
    params = SamplingParams(32, ignore_eos=True)
    prompt = list(range(min(16, engine.model.vocab_size)))
    outside = [_outside_ms(engine, prompt, params, tree) for tree in (None, TreeConfig("dynamic", 8, None) if k else None)]
    progress("measuring latency", 1, 1)
    return LatencyTable(
        device=engine.backend.device,
        prediction_layer=engine.manifest.prediction_layer,
        num_hidden_layers=engine.model.num_hidden_layers,
        cached_tokens=cached,
        rows=tuple(rows),
        lower_ms=tuple(round(ms, 4) for ms in lower),
        upper_ms=tuple(round(ms, 4) for ms in upper),
        predictors_ms=round(predictors, 4),
        plain_outside_ms=round(outside[0], 4),
        drafted_outside_ms=round(outside[1], 4),
    )


def _pass_times(session: Session, rows: int, repeats: int) -> dict[str, float]:
    """Median milliseconds in each graph."""
    tree, times = chain([1] * rows), []
    session.forward(tree, [])
    for _ in range(repeats):
        before = dict(session.graph_ms)
        session.forward(tree, [])
        times.append({name: ms - before[name] for name, ms in session.graph_ms.items()})
    return {name: statistics.median(each[name] for each in times) for name in times[0]}


def _predictor_ms(session: Session) -> float:
    session.forward(chain([1] * 4), [0])
    times = []
    for _ in range(REPEATS):
        before = session.graph_ms["predictors"]
        session.forward(chain([1] * 4), [0, 1])
        times.append(session.graph_ms["predictors"] - before)
    return statistics.median(times)


def _outside_ms(engine: Engine, prompt: list[int], params: SamplingParams, tree: TreeConfig | None) -> float:
    return statistics.median(step.times.outside_ms for step in engine.steps(prompt, params, tree) if step.rows)
