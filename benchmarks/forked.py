"""Commands of firp in forks of this process, which has imported what takes seconds.

In: arguments of a command. Out: how it ended, and what it said; it may be killed before.
"""

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import NamedTuple

from firp.cli import main as firp


class Ended(NamedTuple):
    """How a command ended. status: as of waitpid; said: on stderr."""

    status: int
    said: str


class Running:
    """A command in a fork of this process, which has imported what takes seconds."""

    def __init__(self, *arguments: object, before: Callable[[], object] = lambda: None):
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by wait
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.dup2(self._said.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                before()
                sys.argv = ["firp", *map(str, arguments)]
                status = _status()
            finally:
                os._exit(status)

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Ended:
        """Wait for its end."""
        _, status = os.waitpid(self.pid, 0)
        self._said.seek(0)
        with self._said:
            return Ended(os.waitstatus_to_exitcode(status), self._said.read().decode())


def _status() -> int:
    try:
        firp()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 70
    return 0
