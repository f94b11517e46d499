"""Text that shows which tokens came from one step.

In: what each step released. Out: the same on stdout, steps told apart.
"""

import sys


class StepMarks:
    """Streams text so that the tokens of one step stand together: colours on a terminal, bars
    elsewhere.
    """

    _STYLES = ("\x1b[36m", "\x1b[33m")

    def __init__(self):
        self._colours = sys.stdout.isatty()
        self._step = 0

    def write(self, text: str) -> None:
        """Print what one step released."""
        if not text:
            return
        style = self._STYLES[self._step % 2]
        print(f"{style}{text}\x1b[0m" if self._colours else f"{text}│", end="", flush=True)
        self._step += 1
