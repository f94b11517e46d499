"""What the command line shows a person: progress on stderr, tables on stdout."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from firp.runtime.bench import BenchResult
from firp.runtime.engine import Generation

messages = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
results = Console(highlight=False, soft_wrap=True, markup=False)


class Bar:
    """One line of progress: what is being done, and how far."""

    def __init__(self, progress: Progress):
        self._progress, self._task = progress, progress.add_task("", total=None)

    def update(self, stage: str, done: int, total: int) -> None:
        self._progress.update(self._task, description=stage, completed=done, total=total)

    def stage(self, name: str) -> None:
        self._progress.update(self._task, description=f"verified {name}", completed=0, total=None)


@contextmanager
def progress_bar() -> Iterator[Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True) as progress:
        yield Bar(progress)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """First column left, the others right."""
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    results.print(table)


def print_bench(result: BenchResult) -> None:
    rates = (("plain", result.plain), ("drafted", result.drafted))
    print_table(
        ("decoding", "tokens/s", "ms/step", "tokens/step"),
        [(name, f"{r.tokens_per_s:.0f}", f"{r.ms_per_step:.2f}", f"{r.tokens_per_step:.2f}") for name, r in rates],
        f"{result.tokens} tokens on {result.device} ({result.backend}), prefill not counted",
    )
    low, median, high = result.speedup_quartiles
    results.print(f"speedup {result.speedup:.2f} (by prompt: median {median:.2f}, quartiles {low:.2f} to {high:.2f})")
    results.print(f"identical tokens: {'no' if result.differing_prompts else 'yes'}")
    if result.speedup < 1:
        results.print("drafting does not pay on this device: use --plain")


def summary(result: Generation) -> str:
    """One line about a finished request."""
    stats, count = result.stats, len(result.token_ids)
    rate = stats.decoded_tokens / stats.decode_ms * 1e3 if stats.decode_ms else 0.0
    return f"{count} tokens ({result.finish_reason}), {stats.steps} steps, {stats.tokens_per_step:.2f} tokens/step, {rate:.0f} tokens/s"


class StepMarks:
    """Streams text so that the tokens of one step stand together: colours on a terminal, bars elsewhere."""

    _STYLES = ("\x1b[36m", "\x1b[33m")

    def __init__(self):
        self._colours, self._step = sys.stdout.isatty(), 0

    def write(self, text: str) -> None:
        if not text:
            return
        style = self._STYLES[self._step % 2]
        print(f"{style}{text}\x1b[0m" if self._colours else f"{text}│", end="", flush=True)
        self._step += 1
