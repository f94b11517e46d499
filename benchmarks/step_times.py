"""What `firp tune` predicts of a step's time, over what steps take: plain decoding and drafts of
several shapes, all taking turns on every prompt.

    python benchmarks/step_times.py BUNDLE [PROMPTS.jsonl] [--tokens 64] [--prompts 8]

The prediction is made for the contexts and tree sizes that were met, so that only the latency table is
judged. Without prompts: the demo model's held-out code.
"""

import statistics
from pathlib import Path

import click
from table import Result

from firp.runtime.engine import Engine
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import DRAFTERS, TreeConfig
from firp.runtime.tuning.latency import measure_latency

PROMPTS = Path(__file__).parent.parent / "tests" / "demo_model" / "held_out_prompts.jsonl"
TREES = {
    "plain": None,
    "4 rows, a draft pass": TreeConfig("dynamic", 4, 0),
    "6 rows, 2 sources": TreeConfig("dynamic", 6, 2),
    "8 rows, every row a source": TreeConfig("dynamic", 8, None),
    "8 rows of lookup": TreeConfig.lookup(8),
    "12 rows of both, 2 sources": TreeConfig("dynamic", 12, 2, drafters=DRAFTERS, least=0.05),
}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompts_file", type=click.Path(path_type=Path), default=PROMPTS)
@click.option("--prompts", default=8, show_default=True)
@click.option("--tokens", default=64, show_default=True)
def main(bundle, prompts_file, prompts, tokens):
    engine = Engine.load(bundle)
    latency = measure_latency(engine)
    params = SamplingParams(tokens, ignore_eos=True)
    requests = [engine.request(prompt.content, params) for prompt in read_prompts(prompts_file)[:prompts]]
    steps = {name: [] for name in TREES}  # pairs of cached tokens and a step
    for index, request in enumerate(requests):
        turns = list(TREES.items())
        for name, tree in turns if index % 2 else reversed(turns):
            cached = len(request.prompt)
            for step in engine.steps(request, tree):
                steps[name] += [(cached, step)] if step.rows else []
                cached += len(step.tokens)
    result = Result("step_times", "Predicted and measured steps")
    sizes = sorted(len(request.prompt) for request in requests)
    table = result.table(
        f"{len(requests)} prompts of {sizes[0]} to {sizes[-1]} tokens, {tokens} tokens each",
        *("decoding", "steps", "mean rows", "measured ms: mean", "median", "predicted ms", "over the mean"),
    )
    for name, tree in TREES.items():
        measured = statistics.mean(step.times.total_ms for _, step in steps[name])
        predicted = predicted_ms(latency, tree, engine.manifest.num_predictors, steps[name])
        table.add(
            name,
            len(steps[name]),
            f"{statistics.mean(step.rows for _, step in steps[name]):.1f}",
            f"{measured:.2f}",
            f"{statistics.median(step.times.total_ms for _, step in steps[name]):.2f}",
            f"{predicted:.2f}",
            f"{predicted / measured:.3f}",
        )
    result.write()


def predicted_ms(latency, tree, num_predictors, steps):
    """What the table says of a mean step of these."""
    cached = statistics.mean(cached for cached, _ in steps)
    if tree is None:
        return latency.plain_ms(cached)
    drafted = [step.rows for _, step in steps if step.rows > 1]
    undrafted = 1 - len(drafted) / len(steps)
    mean_rows = statistics.mean(drafted) if drafted else 1.0
    return latency.step_ms(tree, num_predictors, undrafted, mean_rows, cached)


if __name__ == "__main__":
    main()
