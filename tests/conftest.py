"""Bundles that many tests share, each made once a session; tests that need a GPU are skipped
without one.
"""

import os
from pathlib import Path

# Before torch is imported, and for every command that a test runs: tiny models are slower on more
# threads, and threads that wait actively for each other starve whoever else is on the machine.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"

import pytest
from hypothesis import settings
from support.small_models import make_model, make_predictors

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.tensorrt.build import BuildOptions, build_engines
from firp.runtime.backends.nvidia_library import gpu_compute_capability
from firp.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from firp.runtime.bundle import format
from firp.runtime.engine import Engine

# The same examples on every machine; `--hypothesis-profile search` looks for others.
settings.register_profile("repeat", derandomize=True, max_examples=60, deadline=None, database=None)
settings.register_profile("search", max_examples=2000, deadline=None)
settings.load_profile("repeat")

DEMO_MODEL = Path(__file__).parent / "demo_model"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Engines of this process that ask for no number of threads get one, for the same reason; those of
    commands that tests start have as many as a user's.
    """
    options = OnnxRuntimeBackend.options

    def single(self):
        made = options(self)
        made.intra_op_num_threads = made.intra_op_num_threads or 1
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxRuntimeBackend, "options", single)
        yield


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and gpu_compute_capability() is None:
        pytest.skip("no CUDA device")
    if item.get_closest_marker("real") and not Path(os.environ.get("FIRP_REAL_MODEL", "")).is_file():
        pytest.skip("FIRP_REAL_MODEL names no file")


@pytest.fixture(scope="session")
def family_bundle(tmp_path_factory):
    """family -> (model folder, bundle folder), exported once, unverified."""
    made = {}

    def make(family: str) -> tuple[Path, Path]:
        if family not in made:
            root = tmp_path_factory.mktemp(family)
            model = make_model(root / "model", family)
            predictors = make_predictors(root / "predictors", model)
            export_bundle(ExportOptions(model, root / "bundle", predictors))
            made[family] = model, root / "bundle"
        return made[family]

    return make


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory) -> Path:
    bundle = tmp_path_factory.mktemp("demo") / "bundle"
    export_bundle(ExportOptions(DEMO_MODEL, bundle, DEMO_MODEL / "predictors"))
    return bundle


@pytest.fixture(scope="session")
def demo_engine(demo_bundle) -> Engine:
    return Engine.load(demo_bundle)


@pytest.fixture(scope="session")
def demo16(tmp_path_factory):
    """The demo model in float16, and its engines for one device."""
    bundle = tmp_path_factory.mktemp("demo16") / "bundle"
    export_bundle(ExportOptions(DEMO_MODEL, bundle, DEMO_MODEL / "predictors", dtype="float16"))
    return bundle, build_engines(bundle, BuildOptions("tensorrt-rtx", compute_capabilities=("8.9",)))


@pytest.fixture
def half_bundle(tmp_path):
    """A float16 bundle of 4 layers, whose engines build in a second; its model and predictors lie
    beside it.
    """
    model = make_model(tmp_path / "model", "llama")
    predictors = make_predictors(tmp_path / "predictors", model)
    export_bundle(ExportOptions(model, tmp_path / "bundle", predictors, dtype="float16"))
    return tmp_path / "bundle"


@pytest.fixture
def any_graph(monkeypatch):
    """Bundles may hold graphs that a test has changed on purpose."""
    monkeypatch.setattr(format, "check_graphs", lambda *_: None)


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The file of SmolLM2-135M-Instruct; what needs it has the marker `real`."""
    return Path(os.environ["FIRP_REAL_MODEL"])
