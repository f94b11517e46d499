"""firp as a user runs it: a process of its own."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

FIRP = [sys.executable, "-m", "firp.cli"]
# reports progress at every step, as a terminal shows it
_TALKATIVE = "from firp.runtime.console import progress; progress.QUIET_SECONDS = 0; "
TALKATIVE = [sys.executable, "-c", _TALKATIVE + "from firp.cli import main; main()"]


SECONDS = 300  # that a command may take


def firp(*arguments, cwd=None, **options):
    """A command that has ended. With options of subprocess.run it is started from nothing; without,
    it is forked from a process that has imported torch and transformers, which takes seconds.
    """
    arguments = [*map(str, arguments)]
    if options:
        command = [*FIRP, *arguments]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=SECONDS, **options)
    request = {"arguments": arguments, "folder": str(cwd or Path.cwd()), "environment": dict(os.environ)}
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr, open(os.devnull) as stdin:
        server = _warm_server()
        socket.send_fds(server, [json.dumps(request).encode()], [f.fileno() for f in (stdin, stdout, stderr)])
        status = int(server.recv(100))
        texts = [(file.seek(0), file.read().decode())[1] for file in (stdout, stderr)]
    return subprocess.CompletedProcess(arguments, status, *texts)


@functools.cache
def _warm_server():
    """The socket of a server of this process's own, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(SECONDS)
    program = Path(__file__).with_name("warm_server.py")
    with theirs:
        subprocess.Popen([sys.executable, program, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    return ours


def start(*arguments, command=FIRP, stderr=subprocess.PIPE):
    """A running command that Ctrl-C reaches, even where the tests themselves run in the background
    with SIGINT ignored.
    """
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(stream, text):
    """Read lines of a running command until one holds the text; that line."""
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"the command ended without saying {text!r}")


def fails(*arguments, **options):
    """Run, expect failure, and return the one line that says why."""
    result = firp(*arguments, **options)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.strip().splitlines()[-1] == lines[0], result.stderr
    return lines[0]
