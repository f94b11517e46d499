"""Tables on stdout."""

import os
import subprocess
import sys

SCRIPT = """
from firp.runtime.console.tables import print_table
print_table(("a", "b"), [("x" * 60, "1.25 " * 10)], "a title")
"""


def test_tables_are_never_cut():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "40"},
    )
    assert "x" * 60 in result.stdout
    assert "1.25 " * 9 in result.stdout
    assert "…" not in result.stdout
