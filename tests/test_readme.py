"""The README's Python code runs as written, on the bundle that `make demo` leaves."""

import re
import subprocess
import sys

from firp.cli import COMMANDS


def test_readme_code_runs(demo_bundle, tmp_path, pytestconfig):
    (code,) = re.findall(r"```python\n(.*?)```", (pytestconfig.rootpath / "README.md").read_text(), re.S)
    (tmp_path / "demo-bundle").symlink_to(demo_bundle)
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert re.search(r"(stop|length) \d\.\d", result.stdout)


def test_every_command_of_the_readme_exists(pytestconfig):
    named = set(re.findall(r"firp (\w+)", (pytestconfig.rootpath / "README.md").read_text()))
    assert named & set(COMMANDS) == set(COMMANDS)
    assert named - set(COMMANDS) == {"exports", "import"}  # "firp exports a model", "from firp import"
