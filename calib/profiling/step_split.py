"""Where the time of a decoding step goes, in the real loop: graphs, copies, Python.

In: an engine. Out: `StepSplit`s of plain and of drafted decoding. The parts are those of the
runtime's own `StepTimes`, and what is left is Python: trees, bindings, picks.
"""

from dataclasses import dataclass

import numpy as np

from firp.calib.profiling.pass_grid import Spread
from firp.runtime.engine import Engine
from firp.runtime.loop.decode import Step, decode
from firp.runtime.loop.picker import Picker
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig

PROMPT_TOKENS = 64
NEW_TOKENS = 96
WARM_UP_STEPS = 3
PYTHON, TOTAL = "python_ms", "total_ms"


@dataclass(frozen=True)
class PartTime:
    name: str  # <graph>_ms, copies_ms, python_ms or total_ms
    median_ms: float
    low_ms: float  # quartiles
    high_ms: float
    middle_ms: float  # mean over the steps whose total lies between its quartiles: these add up


@dataclass(frozen=True)
class StepSplit:
    decoding: str  # "plain" or "drafted"
    tree: TreeConfig | None
    prompt_tokens: int
    steps: int  # measured
    tokens_per_step: float  # on random tokens: says what was measured, not how good the drafts are
    parts: tuple[PartTime, ...]  # the total last
    commit_bytes_per_step: float  # moved into the cache

    def part(self, name: str) -> PartTime:
        return next(part for part in self.parts if part.name == name)


def split_steps(engine: Engine) -> tuple[StepSplit, ...]:
    """Plain decoding and, where the bundle has predictors, drafted decoding with the best tree of
    this device.
    """
    trees = [None, engine.best_tree] if engine.best_tree else [None]
    return tuple(_split(engine, tree) for tree in trees)


def _split(engine: Engine, tree: TreeConfig | None) -> StepSplit:
    context = engine.model.max_position_embeddings
    count = min(PROMPT_TOKENS, context // 2)
    prompt = np.random.default_rng(0).integers(0, engine.model.vocab_size, count).tolist()
    new_tokens = min(NEW_TOKENS, context - count - 1)
    params = SamplingParams(new_tokens, ignore_eos=True)
    request = engine.request(prompt, params)
    needs = request.needs(tree, engine.manifest.num_predictors)
    session = engine.session(needs.capacity, needs.rows)
    steps, moved = [], 0
    for step in decode(session, request, engine.drafter(tree), Picker(request)):
        if step.rows:
            steps.append(step)
        else:
            moved = session.batch.kv.moved_bytes
    moved = session.batch.kv.moved_bytes - moved
    kept = steps[WARM_UP_STEPS:] or steps
    parts = [_parts(step) for step in kept]
    total = Spread.of([step[TOTAL] for step in parts])
    middle = [step for step in parts if total.low <= step[TOTAL] <= total.high]
    return StepSplit(
        decoding="drafted" if tree else "plain",
        tree=tree,
        prompt_tokens=count,
        steps=len(kept),
        tokens_per_step=sum(len(step.tokens) for step in kept) / len(kept),
        parts=tuple(_part_time(name, parts, middle) for name in parts[0]),
        commit_bytes_per_step=moved / len(steps),
    )


def _part_time(name: str, steps: list[dict[str, float]], middle: list[dict[str, float]]) -> PartTime:
    low, median, high = Spread.of([step[name] for step in steps])
    return PartTime(name, median, low, high, sum(step[name] for step in middle) / len(middle))


def _parts(step: Step) -> dict[str, float]:
    """Milliseconds of each part of a step; they sum to the total."""
    times = step.times
    parts = {f"{name}_ms": ms for name, ms in times.graph_ms.items()} | {"copies_ms": times.copies_ms}
    return {**parts, PYTHON: times.total_ms - sum(parts.values()), TOTAL: times.total_ms}
