"""Plain against drafted decoding, alternating in one process, on the same prompts.

In: an engine, prompts, params. Out: `BenchResult`. Rates cover decoding steps; the prefill is the
same for both and left out.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from firp.runtime.engine import Engine, Generation
from firp.runtime.errors import FirpError
from firp.runtime.sampling import SamplingParams
from firp.runtime.tuning.parity import Difference, PlainRun, first_difference, plain_run


class Rate(NamedTuple):
    tokens_per_s: float
    ms_per_step: float
    tokens_per_step: float


@dataclass(frozen=True)
class BenchResult:
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
        return {
            "plain": self.plain._asdict(),
            "drafted": self.drafted._asdict(),
            "speedup": self.speedup,
            "speedup_quartiles": self.speedup_quartiles,
            "identical": not self.differences,
            "differing_prompts": len(self.differences),
            "near_ties": [each._asdict() for each in self.differences if each.near_tie],
            "tokens": self.tokens,
            "backend": self.backend,
            "device": self.device,
            "cuda_graphs": self.cuda_graphs,
        }


def bench(engine: Engine, prompts: list[str | list[int]], params: SamplingParams) -> BenchResult:
    """Decode every prompt both ways, each way first on every other prompt. Raises FirpError when
    there is nothing to compare.
    """
    if not engine.drafts:
        raise FirpError(
            "the bundle has no predictors",
            got="plain decoding only",
            expected="drafts",
            fix="export with --predictors",
        )
    encoded = [engine.encode(prompt) for prompt in prompts]
    warm_up = SamplingParams(max_new_tokens=min(8, params.max_new_tokens))
    for plain in (True, False):
        engine.generate(encoded[0], warm_up, plain=plain)
    runs: dict[bool, list[Generation]] = {True: [], False: []}
    for index, prompt in enumerate(encoded):
        for plain in (True, False) if index % 2 == 0 else (False, True):
            runs[plain].append(
                engine.generate(prompt, params, plain=plain, tree=None if plain else engine.best_tree)
            )
    ratios = [
        _rate([drafted]).tokens_per_s / _rate([plain]).tokens_per_s
        for plain, drafted in zip(runs[True], runs[False], strict=True)
        if plain.stats.steps and drafted.stats.steps
    ]
    if not ratios:
        raise FirpError(
            "nothing to measure",
            got="no decoding step",
            expected="at least 2 new tokens",
            fix="raise --max-new-tokens",
        )
    plain, drafted = _rate(runs[True]), _rate(runs[False])
    return BenchResult(
        plain=plain,
        drafted=drafted,
        speedup=drafted.tokens_per_s / plain.tokens_per_s,
        speedup_quartiles=[float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75))],
        differences=[
            _difference(
                engine, index, encoded[index], params, plain_tokens.token_ids, drafted_tokens.token_ids
            )
            for index, (plain_tokens, drafted_tokens) in enumerate(zip(runs[True], runs[False], strict=True))
            if plain_tokens.token_ids != drafted_tokens.token_ids
        ],
        tokens=sum(run.stats.decoded_tokens for run in runs[True]),
        backend=engine.backend.name,
        device=engine.backend.device,
        cuda_graphs=engine.sessions.graph_counts,
    )


def _difference(
    engine: Engine,
    index: int,
    prompt: list[int],
    params: SamplingParams,
    plain: list[int],
    drafted: list[int],
) -> Difference:
    """Decodes once more, for the margins."""
    margins = plain_run(engine, prompt, params).margins
    return first_difference(
        index, PlainRun(plain, margins), drafted, params, engine.manifest.precision.compute
    )


def _rate(runs: list[Generation]) -> Rate:
    steps = sum(run.stats.steps for run in runs)
    tokens = sum(run.stats.decoded_tokens for run in runs)
    ms = sum(run.stats.decode_ms for run in runs)
    return Rate(
        tokens / ms * 1e3 if ms else 0.0, ms / steps if steps else 0.0, tokens / steps if steps else 1.0
    )
