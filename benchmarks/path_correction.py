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

from firp.runtime.engine import Engine
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.guesses import Guesses, independent
from firp.runtime.trees.path_correction import PathCorrection
from firp.runtime.trees.tree import TreeConfig, build_tree

PROMPTS = Path(__file__).parent.parent / "tests" / "demo_model" / "held_out_prompts.jsonl"
DRAFTS = (7, 15, 31)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompts", default=40, show_default=True)
@click.option("--tokens", default=96, show_default=True)
@click.option("--drafts", "sizes", type=int, multiple=True, default=DRAFTS, show_default=True)
@click.option("--cost-only", is_flag=True)
def main(bundle, prompts, tokens, sizes, cost_only):
    cost()
    if cost_only:
        return
    engine = Engine.load(bundle, threads=1)  # only tokens are counted
    corrected, without = engine.bundle, replace(engine.bundle, correction=None)
    encoded = [engine.encode(prompt.text) for prompt in read_prompts(PROMPTS)[:prompts]]
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
            before, after = (per_step(np.array(each)) for each in counts)
            low, high = gain_interval(*map(np.array, counts))
            print(
                f"temperature {temperature}, {drafts:2} drafts: {before:.3f} → {after:.3f} ({after / before - 1:+.1%};"
                f" 90 % of draws of prompts: {low:+.1%} to {high:+.1%})",
                flush=True,
            )


def per_step(counts: np.ndarray) -> float:
    """counts [prompts, 2]: tokens and steps."""
    tokens, steps = counts.sum(0)
    return tokens / steps


def gain_interval(without: np.ndarray, corrected: np.ndarray) -> tuple[float, float]:
    """What the gain would have been with other prompts of the same kind: 5 % and 95 % of 2,000
    draws with replacement.
    """
    draws = np.random.default_rng(0).integers(0, len(without), (2000, len(without)))
    low, high = np.quantile(
        [per_step(corrected[draw]) / per_step(without[draw]) - 1 for draw in draws], (0.05, 0.95)
    )
    return float(low), float(high)


def cost(vocab_size: int = 32_000, rank: int = 64, drafts: int = 31) -> None:
    """Milliseconds of tree building with and without the correction, on random guesses."""
    rng = np.random.default_rng(0)
    tables = (rng.standard_normal((vocab_size, rank)).astype(np.float32) for _ in range(2))
    correction = PathCorrection(*tables, np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    config, times = TreeConfig("dynamic", drafts + 1, None), {True: [], False: []}
    for step in range(600):
        logprobs = np.sort(rng.standard_normal((3, 64)) * 2 - 6)[:, ::-1].astype(np.float32)
        guesses = Guesses(rng.integers(0, vocab_size, (3, 64)), logprobs)
        for with_correction in (True, False) if step % 2 else (False, True):
            started = time.perf_counter()
            ranking = correction.rank(step, guesses, greedy=True) if with_correction else independent(guesses)
            build_tree(config, step, guesses, ranking, 3)
            times[with_correction].append((time.perf_counter() - started) * 1e3)
    with_it, without = (statistics.median(times[each]) for each in (True, False))
    print(
        f"{drafts} drafts, vocabulary {vocab_size}, rank {rank}: a tree takes {without:.3f} ms without, {with_it:.3f} ms with,"
        f" so the correction costs {with_it - without:.3f} ms a step"
    )


if __name__ == "__main__":
    main()
