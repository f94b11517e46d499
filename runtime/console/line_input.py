"""Messages that a person types or pastes, or that a pipe brings.

In: standard input. Out: one message after the other. On a terminal the line can be edited and has a
history, where Python has readline.
"""

import os
import select
import sys

_PASTE_SECONDS = 0.02  # lines that follow one another faster were pasted
_MORE = "… "  # before further lines of one message


class LineInput:
    """Reads messages. `interactive`: whether a person types them.

    A line that ends in a backslash goes on in the next. Lines that arrive together, as pasted ones
    do, are one message; from a pipe every line is one.
    """

    def __init__(self):
        self.interactive = sys.stdin.isatty()
        self._ended = False
        if self.interactive:
            _prepare_editing()

    def read(self, prompt: str) -> str:
        """The next message. prompt: shown to a person. Raises EOFError at the end of input, and
        KeyboardInterrupt for Ctrl-C.
        """
        if self._ended:
            raise EOFError
        lines = []
        while True:
            try:
                lines += self._arrived((_MORE if lines else prompt) if self.interactive else "")
            except EOFError:
                if not lines:
                    raise
                self._ended = True
                return "\n".join(lines)
            if not lines[-1].endswith("\\"):
                return "\n".join(lines)
            lines[-1] = lines[-1][:-1]

    def _arrived(self, prompt: str) -> list[str]:
        """A line, and on a terminal those that arrived with it."""
        if not self.interactive:
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return [line.removesuffix("\n")]
        lines = [input(prompt)]
        while _is_waiting():
            try:
                lines.append(input())
            except EOFError:
                self._ended = True
                break
        return lines


def _prepare_editing() -> None:
    try:
        import readline
    except ImportError:  # lines are read as the terminal gives them
        return
    readline.parse_and_bind("set enable-bracketed-paste on")


def _is_waiting() -> bool:
    """Whether more was typed or pasted already; unknown, and so no, where terminals cannot tell."""
    return os.name == "posix" and bool(select.select([sys.stdin], [], [], _PASTE_SECONDS)[0])
