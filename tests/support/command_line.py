"""firp as a user runs it: a process of its own."""

import signal
import subprocess
import sys

FIRP = [sys.executable, "-m", "firp.cli"]
# reports progress at every step, as a terminal shows it
_TALKATIVE = "from firp.runtime.console import progress; progress.QUIET_SECONDS = 0; "
TALKATIVE = [sys.executable, "-c", _TALKATIVE + "from firp.cli import main; main()"]


def firp(*arguments, **options):
    return subprocess.run(
        [*FIRP, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options
    )


def start(*arguments, command=FIRP):
    """A running command that Ctrl-C reaches, even where the tests themselves run in the background
    with SIGINT ignored.
    """
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
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


def fails(*arguments, status=1, **options):
    """Run, expect failure, and return the one line that says why."""
    result = firp(*arguments, **options)
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    if status == 1:
        assert len(lines) == 1, result.stderr
        assert result.stderr.strip().splitlines()[-1] == lines[0], result.stderr
        return lines[0]
    return result.stderr
