"""Ctrl-C and SIGTERM: what they do to a command that is starting, to one that decodes, and to one
that converses.

In: signals. Out: the end of the process with one line, or an event that a loop looks at.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def quit_on_interrupt() -> Iterator[None]:
    """Around imports: a signal ends the process at once with one line and status 1.

    An exception in the middle of an import may come out as another one, or abort the process where
    C++ code calls Python. Nothing is begun yet that would have to be undone.
    """

    def leave(*_) -> None:
        os.write(2, b"error: interrupted\n")
        os._exit(1)

    with _handling(leave):
        yield


@contextmanager
def end_on_terminate() -> Iterator[None]:
    """SIGTERM ends the command with one line and status 1, where Ctrl-C alone does not."""

    def end(*_) -> None:
        os.write(2, b"error: interrupted\n")
        raise SystemExit(1)

    with _handling(end, (signal.SIGTERM,)):
        yield


@contextmanager
def cancel_on_interrupt(signals: tuple[signal.Signals, ...] = SIGNALS) -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that a request ends after its current step and its
    tokens are kept.
    """
    cancel = threading.Event()

    def first(*_) -> None:
        cancel.set()
        restore()  # a second one interrupts at once

    with _handling(first, signals) as restore:
        yield cancel


@contextmanager
def _handling(
    handler: Callable, signals: tuple[signal.Signals, ...] = SIGNALS
) -> Iterator[Callable[[], None]]:
    """A handler for these signals; yields what puts the ones before it back."""
    before = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, previous in before.items():
            signal.signal(number, previous)

    for number in signals:
        signal.signal(number, handler)
    try:
        yield restore
    finally:
        restore()
