"""Verification of SmolLM2 can fail: FIRP_REAL_MODEL names its file; without it, these tests are
skipped.
"""

import random
import shutil

import pytest
from support.mutations import MUTATIONS

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.verify.checks import verify_or_fail
from firp.runtime.errors import CheckFailedError

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def bundle(real_model, tmp_path_factory):
    bundle = tmp_path_factory.mktemp("real") / "bundle"
    export_bundle(ExportOptions(real_model, bundle))
    return bundle


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_seeded_error_is_caught(mutation, real_model, bundle, tmp_path, any_graph):
    mutation(shutil.copytree(bundle, tmp_path / "bundle"), random.Random(0))
    with pytest.raises(CheckFailedError, match="verification failed"):
        verify_or_fail(tmp_path / "bundle", real_model)
    shutil.rmtree(tmp_path / "bundle")  # half a gigabyte each
