"""The demo's second half: the same prompts decoded plainly and drafted, both streamed, then
compared.

In: an engine with drafts and prompts. Out: text and a table on stdout; raises CheckFailedError if a
token differs.
"""

from firp.runtime.console.terminal import StepMarks, print_choice, print_table, results
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckFailedError
from firp.runtime.loop.generation import Generation, collect
from firp.runtime.sampling import SamplingParams


def run_demo(engine: Engine, prompts: list[str], params: SamplingParams) -> None:
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
        steps = sum(run.stats.steps for run in runs[plain])
        tokens = sum(run.stats.decoded_tokens for run in runs[plain])
        seconds = sum(run.stats.decode_ms for run in runs[plain]) / 1e3
        same = "" if plain else "yes" if _same(runs) else "NO"
        rows.append((name, f"{tokens / seconds:.0f}", str(steps), f"{tokens / steps:.2f}", same))
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
