"""Plain against drafted decoding, alternating in one process, on the same prompts.

In: an engine, prompts, params. Out: `BenchResult`. Rates cover decoding steps; the prefill is the
same for both and left out.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from firp.runtime.bundle.precision import refuse_blocks
from firp.runtime.engine import Engine, Prompt
from firp.runtime.errors import FirpError
from firp.runtime.loop.generation import Generation, Stats
from firp.runtime.sampling import SamplingParams
from firp.runtime.tuning.parity import Difference, PlainRun, first_difference, plain_run


class Rate(NamedTuple):
    """Decoding of several requests together."""

    tokens_per_s: float
    ms_per_step: float
    tokens_per_step: float

    @staticmethod
    def of(runs: list[Generation]) -> "Rate":
        """Rates of these generations together."""
        stats = Stats.total(run.stats for run in runs)
        return Rate(stats.tokens_per_s, stats.ms_per_step, stats.tokens_per_step)


@dataclass(frozen=True)
class BenchResult:
    """Plain and drafted rates on the same prompts, and where their tokens differ."""

    plain: Rate
    drafted: Rate
    speedup: float  # drafted over plain tokens/s, all prompts together
    speedup_quartiles: list[float]  # of the prompts' own ratios: lower quartile, median, upper quartile
    # prompts whose drafted tokens leave the plain ones, and whether at a near tie
    differences: list[Difference]
    tokens: int  # decoded by the plain runs, prefill tokens not counted
    backend: str
    device: str
    # captures, replays, and runs of graphs without; None where there are no such things
    cuda_graphs: dict[str, int] | None

    def to_json(self) -> dict[str, Any]:
        """A JSON object, as `firp bench --json` prints it."""
        return {
            "plain": self.plain._asdict(),
            "drafted": self.drafted._asdict(),
            "speedup": self.speedup,
            "speedup_quartiles": self.speedup_quartiles,
            "identical": not self.differences,
            "differing_prompts": len(self.differences),
            "near_ties": [difference._asdict() for difference in self.differences if difference.near_tie],
            "tokens": self.tokens,
            "backend": self.backend,
            "device": self.device,
            "cuda_graphs": self.cuda_graphs,
        }


def bench(engine: Engine, prompts: list[Prompt], params: SamplingParams) -> BenchResult:
    """Decode every prompt both ways, each way first on every other prompt. Raises FirpError when
    there is nothing to compare.
    """
    refuse_blocks(engine.manifest.quantization, "drafts to compare")
    tree = engine.best_tree
    if tree is None:
        raise FirpError(
            "the bundle has no predictors",
            got="plain decoding only",
            expected="drafts",
            fix="export with --predictors, or choose drafts by lookup with firp tune --prompts",
        )
    for prompt in prompts:
        engine.request(prompt, params)  # all are checked before the first is decoded
    warm_up = SamplingParams(max_new_tokens=min(8, params.max_new_tokens))
    engine.generate(prompts[0], warm_up, plain=True)
    engine.generate(prompts[0], warm_up, tree=tree)
    plain_runs, drafted_runs = [], []
    for index, prompt in enumerate(prompts):
        if index % 2 == 0:
            plain_runs.append(engine.generate(prompt, params, plain=True))
        drafted_runs.append(engine.generate(prompt, params, tree=tree))
        if index % 2:
            plain_runs.append(engine.generate(prompt, params, plain=True))
    pairs = list(zip(plain_runs, drafted_runs, strict=True))
    ratios = [
        drafted.stats.tokens_per_s / plain.stats.tokens_per_s
        for plain, drafted in pairs
        if plain.stats.steps and drafted.stats.steps
    ]
    if not ratios:
        raise FirpError(
            "nothing to measure",
            got="no decoding step",
            expected="at least 2 new tokens",
            fix="raise --max-new-tokens",
        )
    plain, drafted = Rate.of(plain_runs), Rate.of(drafted_runs)
    return BenchResult(
        plain=plain,
        drafted=drafted,
        speedup=drafted.tokens_per_s / plain.tokens_per_s,
        speedup_quartiles=[float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75))],
        differences=[
            _difference(engine, index, prompts[index], params, plain_run.token_ids, drafted_run.token_ids)
            for index, (plain_run, drafted_run) in enumerate(pairs)
            if plain_run.token_ids != drafted_run.token_ids
        ],
        tokens=sum(run.stats.decoded_tokens for run in plain_runs),
        backend=engine.backend.name,
        device=engine.backend.device,
        cuda_graphs=engine.sessions.graph_counts,
    )


def _difference(
    engine: Engine,
    index: int,
    prompt: Prompt,
    params: SamplingParams,
    plain: list[int],
    drafted: list[int],
) -> Difference:
    """Decode once more, for the margins."""
    margins = plain_run(engine, prompt, params).margins
    return first_difference(index, PlainRun(plain, margins), drafted, params, engine.manifest.arithmetic)
