"""What the path correction gives: tokens per step with and without it, drafts from every row; and
what it costs a step.

python benchmarks/path_correction.py BUNDLE [--prompts 40] [--tokens 96]
"""

import statistics
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from table import Result

from firp.runtime.engine import Engine
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.guesses import Guesses, independent
from firp.runtime.trees.path_correction import PathCorrection
from firp.runtime.trees.tree import build_tree
from firp.runtime.trees.tree_config import TreeConfig

PROMPTS = Path(__file__).parent.parent / "tests" / "demo_model" / "held_out_prompts.jsonl"
DRAFTS = (7, 15, 31)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompts", default=40, show_default=True)
@click.option("--tokens", default=96, show_default=True)
@click.option("--drafts", "sizes", type=int, multiple=True, default=DRAFTS, show_default=True)
@click.option("--cost-only", is_flag=True)
def main(bundle, prompts, tokens, sizes, cost_only):
    result = Result("path_correction", "What the path correction gives, and what it costs")
    cost(result)
    if cost_only:
        return
    engine = Engine.load(bundle, threads=1)  # only tokens are counted
    corrected = engine.bundle
    without = replace(engine.bundle, correction=None)
    encoded = [engine.encode(prompt.text) for prompt in read_prompts(PROMPTS)[:prompts]]
    table = result.table(
        f"Tokens per step, {len(encoded)} prompts x {tokens} tokens, drafts from every row",
        *("temperature", "drafts", "without", "with", "gain", "90 % of draws of prompts"),
    )
    for temperature in (0.0, 0.8):
        params = SamplingParams(tokens, temperature=temperature, seed=1)
        for drafts in sizes:
            counts = []
            for engine.bundle in (without, corrected):
                runs = [
                    engine.generate(prompt, params, tree=TreeConfig("dynamic", drafts + 1, None)).stats
                    for prompt in encoded
                ]
                counts.append([(run.decoded_tokens, run.steps) for run in runs])
            before, after = (per_step(np.array(count)) for count in counts)
            low, high = gain_interval(*map(np.array, counts))
            table.add(
                temperature,
                drafts,
                f"{before:.3f}",
                f"{after:.3f}",
                f"{after / before - 1:+.1%}",
                f"{low:+.1%} to {high:+.1%}",
            )
    result.write()


def per_step(counts: np.ndarray) -> float:
    """Tokens per step. counts [prompts, 2]: tokens and steps."""
    tokens, steps = counts.sum(0)
    return tokens / steps


def gain_interval(without: np.ndarray, corrected: np.ndarray) -> tuple[float, float]:
    """The gain with other prompts of the same kind, as an interval: 5 % and 95 % of 2,000
    draws with replacement.
    """
    draws = np.random.default_rng(0).integers(0, len(without), (2000, len(without)))
    low, high = np.quantile(
        [per_step(corrected[draw]) / per_step(without[draw]) - 1 for draw in draws], (0.05, 0.95)
    )
    return float(low), float(high)


def cost(result: Result, vocab_size: int = 32_000, rank: int = 64, drafts: int = 31) -> None:
    """Milliseconds of tree building with and without the correction, on random guesses."""
    rng = np.random.default_rng(0)
    tables = (rng.standard_normal((vocab_size, rank)).astype(np.float32) for _ in range(2))
    correction = PathCorrection(*tables, np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    config = TreeConfig("dynamic", drafts + 1, None)
    times = {True: [], False: []}
    for step in range(600):
        logprobs = np.sort(rng.standard_normal((3, 64)) * 2 - 6)[:, ::-1].astype(np.float32)
        guesses = Guesses(rng.integers(0, vocab_size, (3, 64)), logprobs)
        for with_correction in (True, False) if step % 2 else (False, True):
            started = time.perf_counter()
            ranking = correction.rank(step, guesses, greedy=True) if with_correction else independent(guesses)
            build_tree(config, step, guesses, ranking, 3)
            times[with_correction].append((time.perf_counter() - started) * 1e3)
    with_it, without = (statistics.median(times[corrected]) for corrected in (True, False))
    table = result.table(
        "Milliseconds of building a tree", "drafts", "vocabulary", "rank", "without", "with", "cost"
    )
    table.add(drafts, vocab_size, rank, f"{without:.3f}", f"{with_it:.3f}", f"{with_it - without:.3f}")


if __name__ == "__main__":
    main()
