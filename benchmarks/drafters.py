"""Plain decoding beside FIRP, prompt lookup and both in one tree, taking turns on every prompt.

    python benchmarks/drafters.py BUNDLE [NAME=FILE.jsonl ...] [--temperature 0] [--max-new-tokens 96]

Of each kind of text the first half of the prompts chooses the trees, as `firp tune --prompts` does;
the other half is measured. `chosen` is what the tuner took. Without files: the demo model's held-out
code. The bundle itself is not changed.
"""

from pathlib import Path

import click
import numpy as np
from table import Result

from firp.runtime.engine import Engine
from firp.runtime.loop.generation import Stats
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig
from firp.runtime.tuning.choose import MARGIN, TYPICAL_CONTEXT, predicted_speedup
from firp.runtime.tuning.latency import measure_latency
from firp.runtime.tuning.tune import measured, promising_chains, promising_trees

PROMPTS = Path(__file__).parent.parent / "tests" / "demo_model" / "held_out_prompts.jsonl"
COLUMNS = (
    "text",
    "drafts",
    "tree",
    "tokens/step",
    "tokens/s over plain: median",
    "quartiles",
    "all prompts",
    "tokens",
)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option("--temperature", default=0.0, show_default=True)
@click.option("--max-new-tokens", default=96, show_default=True)
@click.option("--name", default="drafters", show_default=True, help="Of the file in results/.")
def main(bundle, texts, temperature, max_new_tokens, name):
    engine = Engine.load(bundle)
    latency = measure_latency(engine)
    result = Result(name, "Drafters side by side")
    table = result.table(f"{max_new_tokens} tokens a prompt, temperature {temperature:g}", *COLUMNS)
    for text in texts or (f"code={PROMPTS}",):
        label, _, file = text.partition("=")
        prompts = [prompt.content for prompt in read_prompts(file)]
        half = len(prompts) // 2
        params = SamplingParams(max_new_tokens, temperature=temperature, seed=1)
        trees, chosen = choose_trees(engine, latency, prompts[:half], temperature)
        for drafts, tree in trees.items():
            report(table, engine, label, drafts, tree, chosen, prompts[half:], params)
    result.note(f"Passes by rows: {dict(zip(latency.rows, latency.lower_ms[0], strict=True))} ms lower half.")
    result.write()


def choose_trees(engine, latency, prompts, temperature):
    """The best tree of each set of drafters on these prompts, and the one that the tuner would take;
    None: plain decoding.
    """
    kind = "sampled" if temperature else "greedy"
    k = engine.manifest.num_predictors
    if engine.manifest.quantization:
        trees = promising_chains(latency, k, TYPICAL_CONTEXT)
    else:
        known = engine.bundle.calibration.candidates if engine.bundle.calibration else ()
        trees = promising_trees(list(known), latency, k, kind)
    found = measured(engine, trees, prompts, kind, lambda *_: None)
    best: dict[str, tuple[float, TreeConfig]] = {}
    for candidate in found:
        speedup = predicted_speedup(candidate, latency, k, kind)
        label = " + ".join(candidate.tree.drafters)
        if label not in best or speedup > best[label][0]:
            best[label] = speedup, candidate.tree
    speedup, tree = max(best.values(), key=lambda pair: pair[0])
    return {label: tree for label, (_, tree) in best.items()}, tree if speedup >= MARGIN else None


def report(table, engine, label, drafts, tree, chosen, prompts, params):
    """Add a row: the prompts decoded plainly and with this tree, the two taking turns."""
    plain_runs, drafted_runs = [], []
    for index, prompt in enumerate(prompts):
        for drafted in (False, True) if index % 2 else (True, False):
            run = engine.generate(prompt, params, plain=not drafted, tree=tree if drafted else None)
            (drafted_runs if drafted else plain_runs).append(run)
    ratios = [
        drafted.stats.tokens_per_s / plain.stats.tokens_per_s
        for plain, drafted in zip(plain_runs, drafted_runs, strict=True)
        if plain.stats.steps
    ]
    low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    plain, drafted = (Stats.total(run.stats for run in runs) for runs in (plain_runs, drafted_runs))
    same = sum(a.token_ids == b.token_ids for a, b in zip(plain_runs, drafted_runs, strict=True))
    rows = f"{tree.rows} rows" + (f", least {tree.least:g}" if tree.least else "")
    table.add(
        label,
        drafts + (" (chosen)" if tree == chosen else ""),
        rows,
        f"{drafted.tokens_per_step:.2f}",
        f"{median:.2f}",
        f"{low:.2f} {high:.2f}",
        f"{drafted.tokens_per_s / plain.tokens_per_s:.2f}",
        f"{same} of {len(prompts)} identical",
    )


if __name__ == "__main__":
    main()
