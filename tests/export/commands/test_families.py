"""The list of families is the table, and the page is the list."""

import importlib.metadata
import json
import re

import gguf
from click.testing import CliRunner
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from firp.export.commands.families import families, page
from firp.export.families.examples import EXAMPLES
from firp.export.families.refused import NEAREST, REFUSED
from firp.export.families.table import FAMILIES
from firp.export.families.wrappers import LOADED_AS, WRAPPERS
from firp.export.sources.gguf.architectures import ARCHITECTURES, LEFT_OUT, MODEL_TYPES, READ_AS


def test_the_page_of_the_documentation_is_what_the_table_says(pytestconfig):
    written = (pytestconfig.rootpath / "docs" / "families.md").read_text()
    assert written == page(), "firp families --markdown > docs/families.md"


def test_every_family_is_listed_once_and_none_is_refused():
    found = json.loads(CliRunner().invoke(families, ["--json"]).output)
    assert found["families"].keys() == FAMILIES.keys()
    assert not REFUSED.keys() & FAMILIES.keys()
    assert FAMILIES.keys() >= EXAMPLES.keys()
    assert set(CONFIG_MAPPING.keys()) >= FAMILIES.keys()  # transformers loads each of them


def test_transformers_loads_nothing_that_is_neither_supported_nor_refused():
    named = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    assert named - FAMILIES.keys() - REFUSED.keys() - WRAPPERS.keys() - LOADED_AS.keys() == set()
    assert not REFUSED.keys() & (WRAPPERS.keys() | LOADED_AS.keys())
    assert NEAREST.keys() <= REFUSED.keys()
    assert set(NEAREST.values()) | set(LOADED_AS.values()) <= FAMILIES.keys()


def test_a_new_family_needs_a_row_of_the_table_alone(monkeypatch):
    monkeypatch.setitem(FAMILIES, "new", FAMILIES["llama"])
    assert "| `new` |  | no |" in page()
    found = json.loads(CliRunner().invoke(families, ["--json"]).output)["families"]["new"]
    assert found["gguf"] is False
    assert found["drafts"] == ["float", "int8"]


def test_families_whose_files_are_read_are_those_of_the_table():
    assert not MODEL_TYPES & READ_AS.keys() and not (MODEL_TYPES | READ_AS.keys()) & LEFT_OUT.keys()
    assert MODEL_TYPES | READ_AS.keys() | LEFT_OUT.keys() <= FAMILIES.keys()
    assert {word for of in READ_AS.values() for word in of.split(" or ")} <= MODEL_TYPES
    named = {name.replace("-", "").replace("_", "") for name in gguf.MODEL_ARCH_NAMES.values()}
    left = {name.replace("_", "") for name in LEFT_OUT}
    assert left & named == {"gptj"}
    version = importlib.metadata.version("gguf").rpartition(".")[0]
    assert {reason for reason in LEFT_OUT.values() if reason.endswith(f" gguf {version}")}


def test_the_page_about_gguf_lists_the_architectures(pytestconfig):
    line = next(
        line
        for line in (pytestconfig.rootpath / "docs" / "gguf.md").read_text().splitlines()
        if line.startswith("| architectures |")
    )
    assert f"of {len(MODEL_TYPES | READ_AS.keys())} families" in line
    assert set(re.findall("`(.+?)`", line)) == ARCHITECTURES.keys()


def test_a_person_sees_a_line_a_family():
    lines = CliRunner().invoke(families).output.splitlines()
    assert len(lines) == len(FAMILIES) + 1
    assert any(line.startswith("llama") and "GGUF" in line for line in lines)
