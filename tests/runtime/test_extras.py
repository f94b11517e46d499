"""The table of extras, beside what pyproject.toml says they bring."""

import re
import sys
import tomllib

import pytest

from firp.runtime.errors import FirpError
from firp.runtime.extras import EXTRAS, missing_package, require

OF_TESTS = {"dev", "clients"}
# distributions whose module has another name
MODULES = {
    "onnxruntime-gpu": "onnxruntime",
    "cuda-bindings": "cuda",
    "tensorrt-rtx-cu13": "tensorrt_rtx",
    "prometheus-client": "prometheus_client",
}


@pytest.fixture(scope="module")
def project(pytestconfig):
    return tomllib.loads((pytestconfig.rootpath / "pyproject.toml").read_text())["project"]


def modules(requirements):
    names = [re.match(r"[\w-]+", requirement)[0] for requirement in requirements]
    return {MODULES.get(name, name) for name in names}


def test_the_table_is_what_the_extras_bring(project):
    optional = {extra: modules(lines) for extra, lines in project["optional-dependencies"].items()}
    brought = {
        module: {extra for extra, found in optional.items() if module in found and extra not in OF_TESTS}
        for module in EXTRAS
    }
    assert brought == {module: set(extras) for module, extras in EXTRAS.items()}


def test_every_module_of_an_extra_is_in_the_table(project):
    optional = project["optional-dependencies"]
    brought = set().union(*(modules(lines) for extra, lines in optional.items() if extra not in OF_TESTS))
    assert brought == set(EXTRAS)


def test_the_base_has_no_onnx_runtime(project):
    base = {"numpy", "tokenizers", "safetensors", "click", "rich", "jinja2"}
    assert modules(project["dependencies"]) == base


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("torch", "x needs torch. Fix: pip install 'firp[export]'"),
        ("onnx.helper", "x needs onnx. Fix: pip install 'firp[profile]'"),
        ("sentencepiece", "x needs sentencepiece. Fix: pip install sentencepiece"),
    ],
)
def test_a_failed_import_becomes_one_line(name, line):
    assert str(missing_package("x", ModuleNotFoundError(name=name))) == line


def test_what_is_required_is_looked_for_and_named_with_its_extras(monkeypatch):
    for name in ("polygraphy", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(FirpError) as caught:
        require("profiling", ("polygraphy", "numpy", "onnxruntime"))
    assert str(caught.value) == (
        "profiling needs polygraphy and onnxruntime | got not installed. "
        "Fix: pip install 'firp[profile]', then pip install 'firp[cpu]', or 'firp[gpu]' for an NVIDIA GPU"
    )
