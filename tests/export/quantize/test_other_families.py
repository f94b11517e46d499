"""Families whose weights lie otherwise, or whose norms cannot take smoothing, as integers."""

import pytest
from support.family_models import save_family
from support.small_models import make_predictors

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.verify.checks import verify


@pytest.mark.parametrize(
    ("model_type", "method"),
    [("gpt2", "int8"), ("cohere", "int8"), ("olmo2", "int8"), ("falcon", "int4"), ("phi", "int4")],
)
def test_a_quantized_family_says_what_its_rounded_model_says(model_type, method, tmp_path):
    """gpt2 is transposed, falcon grouped, phi has a bias on its head; cohere shares one norm, and olmo2
    has none before its layers.
    """
    model = save_family(tmp_path / "model", model_type, vocab_size=64)
    predictors = make_predictors(tmp_path / "predictors", model, 2, 2) if method == "int8" else None
    options = ExportOptions(
        model, tmp_path / "bundle", predictors, prediction_layer=2, quantize=method, quality_limit=1e6
    )
    export_bundle(options)
    assert [check for check in verify(tmp_path / "bundle", model).checks if not check.passed] == []
