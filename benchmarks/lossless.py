"""Drafted against plain decoding on held-out prompts, float32: greedy and sampled, every kind of
tree, every M.

    python benchmarks/lossless.py BUNDLE [--prompts 200] [--tokens 128] [--seeds 5] [--processes 2]

Every difference is printed with the plain run's own margin at that token. A difference is excused
only below the margin in firp.runtime.tuning.parity, and at most one in 10,000 tokens; greedy decoding may
have none.
"""

import itertools
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
from table import Result

from firp.runtime.engine import Engine
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig
from firp.runtime.tuning.parity import Comparison, compare_trees

PROMPTS = Path(__file__).parent.parent / "tests" / "demo_model" / "held_out_prompts.jsonl"
STATIC_PATHS = [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]


def trees() -> dict[str, TreeConfig]:
    kinds = {
        "chain": lambda m: TreeConfig.chain(3, m),
        "static": lambda m: TreeConfig.static(STATIC_PATHS, m),
        "dynamic": lambda m: TreeConfig("dynamic", rows=8, draft_sources=m),
        "shallow": lambda m: TreeConfig("dynamic", rows=4, draft_sources=m, depth=2),
    }
    sources = {"draft pass": 0, "M=1": 1, "M=2": 2, "M=T": None}
    return {
        f"{kind}, {name}": make(m)
        for (kind, make), (name, m) in itertools.product(kinds.items(), sources.items())
    }


def sampling(tokens: int, seeds: int) -> dict[str, SamplingParams]:
    sampled = {
        f"sampled, seed {seed}": SamplingParams(tokens, temperature=0.8, top_p=0.95, seed=seed)
        for seed in range(seeds)
    }
    return {"greedy": SamplingParams(tokens), **sampled}


def work(bundle: Path, prompts: list[str], tokens: int, seeds: int) -> dict[str, list[Comparison]]:
    """One process: the comparisons of its prompts, for greedy and for all sampled runs together."""
    engine = Engine.load(bundle, threads=1, check_hashes=False)
    encoded = [engine.encode(prompt) for prompt in prompts]
    params = sampling(tokens, seeds)
    groups = {
        "greedy": [params["greedy"]],
        "sampled": [group for name, group in params.items() if name != "greedy"],
    }
    return {name: compare_trees(engine, encoded, group, trees()) for name, group in groups.items() if group}


def merge(parts: list[Comparison]) -> Comparison:
    total = Comparison(parts[0].name)
    for part in parts:
        total.tokens += part.tokens
        total.runs += part.runs
        total.steps += part.steps
        total.decoded_tokens += part.decoded_tokens
        total.differences += part.differences
    return total


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompts", default=200, show_default=True)
@click.option("--tokens", default=128, show_default=True)
@click.option("--seeds", default=5, show_default=True)
@click.option("--processes", default=2, show_default=True)
def main(bundle, prompts, tokens, seeds, processes):
    started = time.monotonic()
    texts = [prompt.text for prompt in read_prompts(PROMPTS)[:prompts]]
    with ProcessPoolExecutor(processes) as pool:
        shares = [
            pool.submit(work, bundle, texts[index::processes], tokens, seeds) for index in range(processes)
        ]
        results = [share.result() for share in shares]
    good = True
    result = Result("lossless", "Drafted against plain decoding, float32")
    table = result.table(
        f"{len(texts)} prompts x {tokens} tokens",
        *("decoding", "tree, sources", "runs", "tokens", "tokens/step", "differ", "near ties", "margins"),
    )
    for kind in results[0]:
        for parts in zip(*(found[kind] for found in results), strict=True):
            total = merge(list(parts))
            ties = len(total.differences) - len(total.unexcused)
            wrong = len(total.unexcused)
            allowed = 0 if kind == "greedy" else total.allowed("float32")
            good = good and wrong == 0 and ties <= allowed
            margins = " ".join(f"{difference.margin:.1e}" for difference in total.differences)
            rate = f"{total.tokens_per_step:.3f}"
            table.add(kind, total.name, total.runs, total.tokens, rate, wrong, ties, margins)
    minutes = (time.monotonic() - started) / 60
    result.note(
        f"{'Passed' if good else 'FAILED'}, after {minutes:.1f} minutes; {seeds} seeds where sampled."
    )
    result.write()
    sys.exit(not good)


if __name__ == "__main__":
    main()
