"""Bundles that many tests share, each made once a session."""

from pathlib import Path

import pytest
from small_models import make_model, make_predictors

from firp.export.bundle_writer import ExportOptions, export_bundle
from firp.runtime.engine import Engine

DEMO_MODEL = Path(__file__).parent / "demo_model"


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
