"""The command line and the person before it: progress on stderr, tables on stdout, Ctrl-C."""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from firp.runtime.bundle.calibration import Choice, LatencyTable
from firp.runtime.bundle.engine_record import engine_folders
from firp.runtime.bundle.format import Bundle
from firp.runtime.engine import Engine, Generation
from firp.runtime.trees.tree import TreeConfig
from firp.runtime.tuning.bench import BenchResult

messages = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
results = Console(highlight=False, soft_wrap=True, markup=False)
# a number that is cut is worse than a line that is long
tables = Console(width=400, highlight=False, markup=False)


class Repeating(click.Command):
    """After its argument, a repeatable option takes several values at once: `--data A B` is `--data
    A --data B`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        repeatable = {
            flag for param in self.params if getattr(param, "multiple", False) for flag in param.opts
        }
        expanded, flag, taken = [], None, 0
        greedy = bool(args) and not args[0].startswith("-")
        for arg in args:
            if arg.startswith("-") and len(arg) > 1:
                flag, taken = (arg if greedy and arg in repeatable else None), 0
            elif flag:
                if taken:
                    expanded.append(flag)
                taken += 1
            expanded.append(arg)
        return super().parse_args(ctx, expanded)


class Bar:
    """One line of progress: what is being done, and how far. Where stderr is no terminal, a line
    now and then.
    """

    _QUIET_SECONDS = 15.0

    def __init__(self, progress: Progress):
        self._progress, self._task = progress, progress.add_task("", total=None)
        self._last_line = time.monotonic()

    def update(self, stage: str, done: int, total: int | None) -> None:
        self._progress.update(self._task, description=stage, completed=done, total=total)
        if self._progress.disable and time.monotonic() - self._last_line > self._QUIET_SECONDS:
            self._last_line = time.monotonic()
            messages.print(f"{stage} ({done / total:.0%})" if total else stage)

    def stage(self, name: str) -> None:
        self.update(f"verified {name}", 0, None)


@contextmanager
def progress_bar() -> Iterator[Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as progress:
        yield Bar(progress)


@contextmanager
def cancel_on_interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that a request ends after its current step and its
    tokens are kept.
    """
    cancel = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def first(*_):
        cancel.set()
        restore()  # a second one interrupts at once

    for number in before:
        signal.signal(number, first)
    try:
        yield cancel
    finally:
        restore()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """First column left, the others right."""
    table = Table()
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    if title:
        results.print(title)
    tables.print(table)


def print_bench(result: BenchResult) -> None:
    rates = (("plain", result.plain), ("drafted", result.drafted))
    print_table(
        ("decoding", "tokens/s", "ms/step", "tokens/step"),
        [
            (name, f"{r.tokens_per_s:.0f}", f"{r.ms_per_step:.2f}", f"{r.tokens_per_step:.2f}")
            for name, r in rates
        ],
        f"{result.tokens} tokens on {result.device} ({result.backend}), prefill not counted",
    )
    low, median, high = result.speedup_quartiles
    results.print(
        f"speedup {result.speedup:.2f} (by prompt: median {median:.2f}, quartiles {low:.2f} to {high:.2f})"
    )
    results.print(f"identical tokens: {'no' if result.differences else 'yes'}")
    for each in result.differences:
        what = "near tie" if each.near_tie else "difference"
        results.print(f"{what}: prompt {each.prompt + 1}, token {each.position}, margin {each.margin:.2g}")
    if result.cuda_graphs:
        results.print(
            "CUDA graphs: " + ", ".join(f"{count} {name}" for name, count in result.cuda_graphs.items())
        )
    if result.speedup < 1:
        results.print("drafting does not pay on this device: decode with --plain, or let firp tune choose")


def summary(result: Generation) -> str:
    """One line about a finished request."""
    stats, count = result.stats, len(result.token_ids)
    rate = stats.decoded_tokens / stats.decode_ms * 1e3 if stats.decode_ms else 0.0
    steps = f"{stats.steps} steps, {stats.tokens_per_step:.2f} tokens/step"
    return f"{count} tokens ({result.finish_reason}), {steps}, {rate:.0f} tokens/s"


def print_latency(latency: LatencyTable) -> None:
    rows = zip(latency.rows, latency.lower_ms, latency.upper_ms, strict=True)
    print_table(
        ("rows of a pass", "lower ms", "upper ms"),
        [(str(count), f"{lower:.2f}", f"{upper:.2f}") for count, lower, upper in rows],
        f"latency on {latency.device}, {latency.cached_tokens} cached tokens; outside the graphs "
        f"{latency.plain_outside_ms:.2f} ms a plain step, {latency.drafted_outside_ms:.2f} a drafted one",
    )


def describe(tree: TreeConfig) -> str:
    """One line about a tree."""
    drafts = "a draft pass" if tree.draft_sources == 0 else f"drafts from {tree.draft_sources or 'every row'}"
    return f"{tree.kind}, {tree.rows} rows, {drafts}" + (f", depth {tree.depth}" if tree.depth else "")


def print_choice(choice: Choice) -> None:
    if choice.drafts:
        rate = f"{choice.tokens_per_step:.2f} tokens/step, expected speedup {choice.speedup:.2f}"
        messages.print(f"chosen for this device: {describe(choice.tree)}; {rate}")
    else:
        messages.print(
            f"chosen for this device: plain decoding; the best tree would reach {choice.speedup:.2f} of its speed"
        )


def tuning_remark(engine: Engine) -> str | None:
    """What a user should know about the tree that is used, if anything."""
    if not engine.drafts:
        return "the bundle has no predictors: decoding plainly"
    if engine.choice is None:
        return (
            f"not tuned for this device ({engine.backend.device}): firp tune BUNDLE chooses its fastest tree"
        )
    if not engine.choice.drafts:
        return f"plain decoding is fastest on this device: the best tree would reach {engine.choice.speedup:.2f} of its speed"
    return None


def print_bundle(bundle: Bundle) -> None:
    m, c, tree = bundle.manifest, bundle.manifest.model, bundle.tree
    a = c.attention
    heads = f"{a.num_heads} query and {a.num_key_value_heads} key/value heads of {a.head_dim}"
    results.print(
        f"{c.architecture} '{m.source['model']}': {c.num_hidden_layers} layers, hidden {c.hidden_size}, vocabulary {c.vocab_size}"
    )
    results.print(
        f"{heads}, context {c.max_position_embeddings} tokens, end of sequence {list(bundle.eos_token_ids)}"
    )
    results.print(
        f"{m.precision.compute}, split at layer {m.prediction_layer}, {m.num_predictors or 'no'} predictors"
    )
    if tree:
        held_out = m.source["predictors"]["held_out"]
        results.print(f"tree: {describe(tree)}; path correction: {'yes' if bundle.correction else 'no'}")
        for device, choice in m.choices.items():
            chosen = describe(choice.tree) if choice.drafts else "plain decoding"
            results.print(f"tuned for {device}: {chosen}, expected speedup {choice.speedup:.2f}")
        results.print(f"held-out accuracy by offset: top-1 {held_out['top1']}, top-5 {held_out['top5']}")
    checks = (
        f"{len(m.verification['checks'])} checks, {count_ties(m.verification)}" if m.verification else "never"
    )
    results.print(f"verified: {checks}; written by firp {m.written_by['firp']}")
    for folder in engine_folders(bundle.path):
        results.print(f"engines: {folder.name}")
    for name, entry in m.files.items():
        results.print(f"{entry.size:>12,}  {entry.sha256[:12]}  {name}")


def count_ties(verification: dict[str, Any]) -> str:
    count = len(verification["near_ties"])
    return f"{count} near ties" if count else "no near tie"


class StepMarks:
    """Streams text so that the tokens of one step stand together: colours on a terminal, bars
    elsewhere.
    """

    _STYLES = ("\x1b[36m", "\x1b[33m")

    def __init__(self):
        self._colours, self._step = sys.stdout.isatty(), 0

    def write(self, text: str) -> None:
        if not text:
            return
        style = self._STYLES[self._step % 2]
        print(f"{style}{text}\x1b[0m" if self._colours else f"{text}│", end="", flush=True)
        self._step += 1
