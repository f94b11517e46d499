"""Experts are not stored as integers, and that is said before anything is written."""

import pytest
from support.family_models import save_family

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.runtime.errors import FirpError


def test_experts_are_not_quantized(tmp_path):
    model = save_family(tmp_path / "model", "mixtral")
    with pytest.raises(FirpError, match="experts are not stored as integers.*int8 of MixtralForCausalLM"):
        export_bundle(ExportOptions(model, tmp_path / "bundle", quantize="int8"))
    assert not (tmp_path / "bundle").exists()
