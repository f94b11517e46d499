"""Families whose weights lie otherwise, whose norms cannot take smoothing, or that have experts or latent
rows, as integers.
"""

import pytest
from support.family_models import save_family
from support.small_models import make_predictors

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.verify.checks import verify

FEW_EXPERTS = {"first_k_dense_replace": 2, "n_routed_experts": 4, "n_group": 2, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("model_type", "method"),
    [
        ("gpt2", "int8"),
        ("cohere", "int8"),
        ("olmo2", "int8"),
        ("deepseek_v3", "int8"),
        ("falcon", "int4"),
        ("phimoe", "int4"),
    ],
)
def test_a_quantized_family_says_what_its_rounded_model_says(model_type, method, tmp_path):
    """gpt2 is transposed, falcon grouped, phimoe has a bias on its head; cohere shares one norm, and
    olmo2 has none before its layers. Latent rows and experts draft chains, too.
    """
    changes = FEW_EXPERTS if model_type == "deepseek_v3" else {}
    model = save_family(tmp_path / "model", model_type, vocab_size=64, **changes)
    predictors = make_predictors(tmp_path / "predictors", model, 2, 2) if method == "int8" else None
    options = ExportOptions(
        model, tmp_path / "bundle", predictors, prediction_layer=2, quantize=method, quality_limit=1e6
    )
    export_bundle(options)
    assert [check for check in verify(tmp_path / "bundle", model).checks if not check.passed] == []
