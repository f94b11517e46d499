"""The documents name files that exist."""

import re

ROOMS = r"(?:runtime|export|calib|benchmarks|tests)/"


def test_every_file_that_a_document_names_exists(pytestconfig):
    root, named = pytestconfig.rootpath, []
    for document in (root / "README.md", *(root / "docs").glob("*.md")):
        text = document.read_text()
        named += [(document.name, path) for path in re.findall(rf"[`(]({ROOMS}[\w./]*)[`)]", text)]
    assert len(named) > 40
    assert [(where, path) for where, path in named if not (root / path).exists()] == []
