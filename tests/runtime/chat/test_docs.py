"""The Python code of docs/chat.md runs as written."""

import re
import subprocess
import sys

from support.chat_bundles import TEMPLATE, add_chat


def test_the_embedding_example_runs(demo_bundle, tmp_path, pytestconfig):
    (code,) = re.findall(
        r"```python\n(.*?)```", (pytestconfig.rootpath / "docs" / "chat.md").read_text(), re.S
    )
    add_chat(demo_bundle, tmp_path / "bundle", TEMPLATE)
    code = code.replace("max_new_tokens=512", "max_new_tokens=8")
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert re.search(r"^[1-9]\d* prompt tokens came from the cache$", result.stdout, re.M)
