"""Progress and messages, on stderr.

In: what is being done and how far it is. Out: one line that changes, or, where stderr is no
terminal, a line now and then.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress as rich_progress
from rich.console import Console

QUIET_SECONDS = 15.0  # between two lines, where stderr is no terminal
messages = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


class Bar:
    """One line of progress; made by `progress_bar`."""

    def __init__(self, progress: rich_progress.Progress):
        self._progress = progress
        self._task = progress.add_task("", total=None)
        self._last_line = time.monotonic()

    def update(self, stage: str, done: int, total: int | None) -> None:
        """Show a stage and its share of `total`; this is a `firp.runtime.progress.Progress`."""
        self._progress.update(self._task, description=stage, completed=done, total=total)
        if self._progress.disable and time.monotonic() - self._last_line > QUIET_SECONDS:
            self._last_line = time.monotonic()
            messages.print(f"{stage} ({done / total:.0%})" if total else stage)

    def stages(self, verb: str) -> Callable[[str], None]:
        """What shows a name after a verb, for work that cannot say how much of it is left."""
        return lambda name: self.update(f"{verb} {name}", 0, None)


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """A bar that is gone when its work is done."""
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(24),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    disable = not messages.is_terminal
    with rich_progress.Progress(*columns, console=messages, transient=True, disable=disable) as progress:
        yield Bar(progress)
