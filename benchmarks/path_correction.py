"""What the path correction gives: tokens per step with and without it, drafts from every row; and what it costs a step.

python benchmarks/path_correction.py BUNDLE [--prompts 40] [--tokens 96]
"""

import statistics
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from firp.runtime.engine import Engine
from firp.runtime.guesses import Guesses, PathCorrection, independent
from firp.runtime.sampling import SamplingParams
from firp.runtime.text import read_prompts
from firp.runtime.tree import TreeConfig, build_tree

PROMPTS = Path(__file__).parent.parent / "tests" / "demo_model" / "held_out_prompts.jsonl"
DRAFTS = (7, 15, 31)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompts", default=40, show_default=True)
@click.option("--tokens", default=96, show_default=True)
@click.option("--cost-only", is_flag=True)
def main(bundle, prompts, tokens, cost_only):
    cost()
    if cost_only:
        return
    engine = Engine.load(bundle, threads=1)  # only tokens are counted
    corrected, without = engine.bundle, replace(engine.bundle, correction=None)
    encoded = [engine.encode(prompt.text) for prompt in read_prompts(PROMPTS)[:prompts]]
    for temperature in (0.0, 0.8):
        params = SamplingParams(tokens, temperature=temperature, seed=1)
        for drafts in DRAFTS:
            per_step = []
            for engine.bundle in (without, corrected):
                runs = [engine.generate(prompt, params, tree=TreeConfig("dynamic", drafts + 1, None)) for prompt in encoded]
                per_step.append(sum(run.stats.decoded_tokens for run in runs) / sum(run.stats.steps for run in runs))
            gain = per_step[1] / per_step[0] - 1
            print(f"temperature {temperature}, {drafts:2} drafts: {per_step[0]:.3f} → {per_step[1]:.3f} ({gain:+.1%})", flush=True)


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
