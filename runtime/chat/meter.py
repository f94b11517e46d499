"""Limits of one rendering: a template is a program from a file, and must end in bounded time and
memory.

In: sizes of what a template is about to make. Out: nothing, or a `TemplateLimitError`.
"""

import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

MAX_TEXT = 1 << 23  # characters of one text, and of everything that is rendered
MAX_WORK = 1 << 28  # characters that a rendering may make in all
ELEMENT = 16  # characters that an element of a list counts for; one of a dict counts for four of them
MAX_WIDTH = 100_000  # of padding and indentation; exponents and precisions too
SECONDS = 5.0  # of this thread's processor time
_STEP = 16  # what a call or one turn of a loop counts


class TemplateLimitError(Exception):
    """A template went beyond a limit. No lookup error, which templates may turn into a value."""


class Meter:
    """What one rendering has used so far."""

    def __init__(self):
        self._left = MAX_WORK
        self._ticks = 0
        self._deadline = time.thread_time() + SECONDS

    def spend(self, size: int = 0) -> None:
        """Count one step that makes a text of `size` characters. Raises TemplateLimitError."""
        if size > MAX_TEXT:
            raise TemplateLimitError(f"a text of {size} characters, of at most {MAX_TEXT}")
        self._left -= size + _STEP
        self._ticks += 1
        if self._left < 0 or (self._ticks % 64 == 0 and time.thread_time() > self._deadline):
            raise TemplateLimitError(f"a rendering without end: {self._ticks} steps")


_METER: ContextVar[Meter | None] = ContextVar("meter", default=None)


@contextmanager
def metered() -> Iterable[None]:
    """Around one compilation or rendering: everything in it counts together."""
    token = _METER.set(Meter())
    try:
        yield
    finally:
        _METER.reset(token)


def spend(size: int = 0) -> None:
    """Count for the rendering that this thread is in."""
    meter = _METER.get()
    if meter is not None:
        meter.spend(size)


def check_width(*numbers: Any) -> None:
    """Raises TemplateLimitError for a number that would make a text or a number of that size."""
    for number in numbers:
        if isinstance(number, int) and abs(number) > MAX_WIDTH:
            raise TemplateLimitError(f"a width of {str(number)[:20]}, of at most {MAX_WIDTH}")


def measure(value: Any) -> int:
    """About how many characters a value is as text; containers are walked, up to the limit. Raises
    TemplateLimitError.
    """
    total = 0
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, Mapping):
            stack += item
            stack += item.values()
        elif isinstance(item, list | tuple):
            stack += item
        total += 4
        if total > MAX_TEXT:
            raise TemplateLimitError(f"a value of more than {MAX_TEXT} characters")
    return total
