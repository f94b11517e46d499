"""What a person sees while a long command runs."""

import subprocess
import sys

SCRIPT = """
from firp.runtime.console import progress
progress.QUIET_SECONDS = {seconds}
with progress.progress_bar() as bar:
    bar.update("training", 1, 4)
    bar.stages("verified")("tree")
"""


def run(seconds):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(seconds=seconds)], capture_output=True, text=True, check=True
    )


def test_without_a_terminal_a_long_command_speaks_now_and_then_on_stderr():
    assert run(seconds=-1).stderr.splitlines() == ["training (25%)", "verified tree"]


def test_a_short_command_is_silent():
    assert run(seconds=100).stderr == ""


def test_progress_never_mixes_with_results():
    assert run(seconds=-1).stdout == ""
