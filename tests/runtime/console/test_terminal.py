"""What a person sees while a long command runs."""

import subprocess
import sys

SCRIPT = """
from firp.runtime.console import terminal
terminal.Bar._QUIET_SECONDS = {seconds}
with terminal.progress_bar() as bar:
    bar.update("training", 1, 4)
    bar.update("verifying", 0, None)
"""


def run(seconds):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(seconds=seconds)], capture_output=True, text=True, check=True
    )


def test_without_a_terminal_a_long_command_speaks_now_and_then():
    result = run(seconds=-1)
    assert result.stderr.splitlines() == ["training (25%)", "verifying"] and result.stdout == ""


def test_and_a_short_one_is_silent():
    assert run(seconds=100).stderr == ""


def test_tables_are_never_cut():
    script = "from firp.runtime.console.terminal import print_table; print_table(('a', 'b'), [('x' * 60, '1.25 ' * 10)], 'a title')"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"COLUMNS": "40"}
    )
    assert "x" * 60 in result.stdout and "1.25 " * 9 in result.stdout and "…" not in result.stdout
