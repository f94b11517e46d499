"""The `demo` command: the demo model exported, then prompts decoded plainly and drafted, both
streamed and compared.

In: the demo model of a checkout. Out: a bundle; text and a table on stdout. The exit status is 1
when a token differs.
"""

from pathlib import Path

import click

from firp.calib.commands.export import export
from firp.runtime.commands.shown import print_choice
from firp.runtime.console.options import PATH
from firp.runtime.console.step_marks import StepMarks
from firp.runtime.console.tables import print_table, results
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckFailedError, FirpError
from firp.runtime.loop.generation import Generation, Stats, collect
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams

DEMO_MODEL = Path(__file__).parents[2] / "tests" / "demo_model"
DEMO_BUNDLE = Path("demo-bundle")


@click.command()
@click.option(
    "-o", "--output", type=PATH, default=DEMO_BUNDLE, show_default=True, help="Where to keep the bundle."
)
def demo(output):
    """Export the demo model, verify it, decode with and without drafts, and compare."""
    if not (DEMO_MODEL / "config.json").is_file():
        raise FirpError(
            "the demo model is not installed", got=f"no '{DEMO_MODEL}'", fix="run firp demo from a checkout"
        )
    click.get_current_context().invoke(
        export,
        model=DEMO_MODEL,
        output=output,
        predictors=DEMO_MODEL / "predictors",
        force=output == DEMO_BUNDLE,
    )
    prompts = [prompt.text for prompt in read_prompts(DEMO_MODEL / "demo_prompts.jsonl")]
    run_demo(Engine.load(output), prompts, SamplingParams(max_new_tokens=48, stop=("\n\n",)))


def run_demo(engine: Engine, prompts: list[str], params: SamplingParams) -> None:
    """Stream every prompt both ways, then print the comparison. Raises CheckFailedError if a token
    differs.
    """
    engine.generate(prompts[0], SamplingParams(max_new_tokens=8))  # warm-up
    runs: dict[bool, list[Generation]] = {True: [], False: []}
    for prompt in prompts:
        for plain in (True, False):
            how = "plain, one token a step" if plain else "drafted, the tokens of one step marked together"
            results.print(f"\n── {how} " + "─" * (60 - len(how)), style="bold")
            print(prompt, end="")
            runs[plain].append(_stream(engine, prompt, params, plain))
    print()
    rows = []
    for plain, name in ((True, "plain"), (False, "drafted")):
        stats = Stats.total(run.stats for run in runs[plain])
        same = "" if plain else "yes" if _same(runs) else "NO"
        rate, per_step = f"{stats.tokens_per_s:.0f}", f"{stats.tokens_per_step:.2f}"
        rows.append((name, rate, str(stats.steps), per_step, same))
    print_table(("decoding", "tokens/s", "steps", "tokens per step", "identical"), rows)
    if engine.tree is None:
        print_choice(engine.choice)
    if not _same(runs):
        raise CheckFailedError("drafted decoding differs from plain", expected="the same tokens")


def _same(runs: dict[bool, list[Generation]]) -> bool:
    return [run.token_ids for run in runs[True]] == [run.token_ids for run in runs[False]]


def _stream(engine: Engine, prompt: str, params: SamplingParams, plain: bool) -> Generation:
    write = StepMarks().write if not plain else lambda text: print(text, end="", flush=True)
    tree = None if plain else engine.best_tree  # to be seen even where plain decoding is faster
    result = collect(engine.stream(prompt, params, plain=plain, tree=tree), lambda chunk: write(chunk.text))
    print()
    return result
