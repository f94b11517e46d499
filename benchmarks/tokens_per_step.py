"""Tokens per step of dynamic trees on held-out prompts, by rows T and draft sources M (0: a draft
pass); and the rate that each gives here.

    python benchmarks/tokens_per_step.py BUNDLE [--prompts 40] [--tokens 96] [--temperature 0]

Plain decoding runs in the same process, before every tree of every prompt; a rate is quoted as its
ratio to that.
"""

import statistics
from pathlib import Path

import click
from table import Result

from firp.runtime.engine import Engine
from firp.runtime.loop.generation import Generation
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig

PROMPTS = Path(__file__).parent.parent / "tests" / "demo_model" / "held_out_prompts.jsonl"
ROWS = (4, 8, 16, 32)
SOURCES = (0, 1, 2, 4, None)


def rate(run: Generation) -> float:
    return run.stats.decoded_tokens / run.stats.decode_ms


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompts", default=40, show_default=True)
@click.option("--tokens", default=96, show_default=True)
@click.option("--temperature", default=0.0, show_default=True)
@click.option("--threads", default=None, type=int)
def main(bundle, prompts, tokens, temperature, threads):
    engine = Engine.load(bundle, threads=threads)
    top_p = 1.0 if temperature == 0 else 0.95
    params = SamplingParams(tokens, temperature=temperature, top_p=top_p)
    encoded = [engine.encode(prompt.text) for prompt in read_prompts(PROMPTS)[:prompts]]
    held_out = engine.manifest.source["predictors"]["held_out"]
    result = Result(
        "tokens_per_step", "Tokens per step and speed of dynamic trees, every tree on every prompt"
    )
    table = result.table(
        f"{len(encoded)} prompts x {tokens} tokens, temperature {temperature}, top_p {top_p}",
        *("rows", "draft sources", "tokens/step", "rate to plain, median", "quartiles"),
    )
    for rows in ROWS:
        for sources in SOURCES:
            tree = TreeConfig("dynamic", rows, sources)
            runs = []
            ratios = []
            for prompt in encoded:
                plain = engine.generate(prompt, params, plain=True)
                drafted = engine.generate(prompt, params, tree=tree)
                assert drafted.token_ids == plain.token_ids or temperature > 0
                runs.append(drafted)
                if plain.stats.steps and drafted.stats.steps:
                    ratios.append(rate(drafted) / rate(plain))
            tau = sum(run.stats.decoded_tokens for run in runs) / sum(run.stats.steps for run in runs)
            low, median, high = statistics.quantiles(ratios, n=4)
            shown = {0: "draft pass", None: "T"}.get(sources, sources)
            table.add(rows, shown, f"{tau:.3f}", f"{median:.2f}", f"{low:.2f} {high:.2f}")
    result.note(f"Predictors: top-1 by offset {held_out['top1']}, top-5 {held_out['top5']}.")
    result.write()


if __name__ == "__main__":
    main()
