"""A command on a terminal of its own, typed to as a person would."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time

from support.command_line import FIRP

SECONDS = 30.0  # that a text may take to appear


class Terminal:
    """A running command; `screen` is everything that it wrote so far."""

    def __init__(self, *arguments):
        self._master, slave = pty.openpty()

        def own_the_terminal():
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [*FIRP, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=own_the_terminal,
            env={**os.environ, "TERM": "xterm"},
        )
        os.close(slave)
        self.screen = ""
        self._seen = 0

    def type(self, text):
        """Press these keys."""
        os.write(self._master, text.encode())

    def wait_for(self, text):
        """Wait until the command writes this, after what was waited for before; what came until
        then.
        """
        deadline = time.monotonic() + SECONDS
        while text not in self.screen[self._seen :]:
            assert time.monotonic() < deadline, f"no {text!r} in {self.screen[self._seen :]!r}"
            assert self._read(deadline - time.monotonic()), f"ended without {text!r}: {self.screen!r}"
        start, self._seen = self._seen, self.screen.index(text, self._seen) + len(text)
        return self.screen[start : self._seen - len(text)]

    def wait_for_more(self):
        """Wait until the command writes anything after what was waited for before."""
        deadline = time.monotonic() + SECONDS
        while len(self.screen) == self._seen:
            assert time.monotonic() < deadline, f"nothing after {self.screen!r}"
            assert self._read(deadline - time.monotonic()), f"ended: {self.screen!r}"

    def end(self):
        """Wait until the command ends; its exit status."""
        deadline = time.monotonic() + SECONDS
        while self._read(deadline - time.monotonic()):
            assert time.monotonic() < deadline, f"still there: {self.screen[-400:]!r}"
        os.close(self._master)
        return self.process.wait(SECONDS)

    def _read(self, seconds):
        """Whether anything came before the command ended."""
        if not select.select([self._master], [], [], max(seconds, 0))[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other side is closed
            return False
        self.screen += data.decode(errors="replace")
        return bool(data)
