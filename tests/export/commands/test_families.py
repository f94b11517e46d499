"""The list of families is the table, and the page is the list."""

import json

from click.testing import CliRunner
from transformers import CONFIG_MAPPING

from firp.export.commands.families import families, page
from firp.export.families.examples import EXAMPLES
from firp.export.families.refused import REFUSED
from firp.export.families.table import FAMILIES


def test_the_page_of_the_documentation_is_what_the_table_says(pytestconfig):
    written = (pytestconfig.rootpath / "docs" / "families.md").read_text()
    assert written == page(), "firp families --markdown > docs/families.md"


def test_every_family_is_listed_once_and_none_is_refused():
    found = json.loads(CliRunner().invoke(families, ["--json"]).output)
    assert found["families"].keys() == FAMILIES.keys()
    assert not REFUSED.keys() & FAMILIES.keys()
    assert FAMILIES.keys() >= EXAMPLES.keys()
    assert set(CONFIG_MAPPING.keys()) >= FAMILIES.keys()  # transformers loads each of them


def test_a_person_sees_a_line_a_family():
    lines = CliRunner().invoke(families).output.splitlines()
    assert len(lines) == len(FAMILIES) + 1
    assert any(line.startswith("llama") and "GGUF" in line for line in lines)
