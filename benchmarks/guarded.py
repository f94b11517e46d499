"""Drafted beside plain decoding as requests get it: with what `firp tune` chose, rows by their price, and
the guard. Both take turns on every prompt; all tokens are compared.

    python benchmarks/guarded.py BUNDLE --prompts FILE.jsonl [--temperature 0] [--turns 2] [--per-kind 4]

A prompt's "id" begins with its kind, as in "summary:12".
"""

from collections import defaultdict
from pathlib import Path

import click
import numpy as np
from peer_jobs import of_each_kind
from table import Result

from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.loop.generation import Generation, Stats
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams

ALL = "all"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompts", type=click.Path(path_type=Path), required=True)
@click.option("--temperature", default=0.0, show_default=True)
@click.option("--max-new-tokens", default=64, show_default=True)
@click.option("--turns", default=2, show_default=True)
@click.option("--per-kind", default=4, show_default=True, help="Prompts of each kind.")
@click.option("--name", default="guarded", show_default=True, help="Of the file.")
def main(bundle, prompts, temperature, max_new_tokens, turns, per_kind, name):
    engine = Engine.load(bundle)
    if engine.choice is None or engine.tree is None:
        raise FirpError("requests are decoded plainly", got=f"'{bundle}'", fix="firp tune it, with prompts")
    kinds = of_each_kind(read_prompts(prompts), per_kind)
    asked = [(kind, prompt) for kind, some in kinds.items() for prompt in some]
    runs: dict[str, list[tuple[Generation, Generation]]] = defaultdict(list, {ALL: []})
    for turn in range(turns):
        for place, (kind, prompt) in enumerate(asked):
            params = SamplingParams(max_new_tokens, temperature=temperature, seed=turn)
            ways = (True, False) if (place + turn) % 2 else (False, True)
            found = {plain: engine.generate(prompt.content, params, plain=plain) for plain in ways}
            runs[kind].append((found[True], found[False]))
            runs[ALL].append(runs[kind][-1])
    result = Result(name, f"Drafts as requests get them: {bundle.resolve().name}")
    caption = f"{max_new_tokens} tokens a prompt, temperature {temperature:g}, {turns} turns"
    columns = (
        "plain, tokens/s",
        "drafted over plain: all tokens by all time",
        "median and quartiles of prompts",
    )
    table = result.table(caption, "text", *columns, "tokens/step", "steps with drafts", "tokens")
    for kind, pairs in runs.items():
        table.add(kind, *row(pairs))
    tree = engine.tree
    result.note(
        f"The tree: {tree.kind}, {tree.rows} rows, {' and '.join(tree.drafters)}, drafts from "
        f"{tree.draft_sources} rows, probability {tree.least} or more."
    )
    result.write()


def row(pairs: list[tuple[Generation, Generation]]) -> tuple[str, ...]:
    """Cells of the runs of one kind: plain and drafted of each."""
    plain, drafted = (Stats.total(run.stats for run in runs) for runs in zip(*pairs, strict=True))
    ratios = [
        one.stats.tokens_per_s and two.stats.tokens_per_s / one.stats.tokens_per_s for one, two in pairs
    ]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    same = sum(one.token_ids == two.token_ids for one, two in pairs)
    return (
        f"{plain.tokens_per_s:.1f}",
        f"{drafted.tokens_per_s / plain.tokens_per_s:.2f}",
        f"{middle:.2f} ({low:.2f}, {high:.2f})",
        f"{drafted.tokens_per_step:.2f}",
        f"{drafted.drafted_steps / drafted.steps:.0%}",
        f"{same} of {len(pairs)} identical",
    )


if __name__ == "__main__":
    main()
