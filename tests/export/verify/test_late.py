"""What begins after more tokens than any prompt of a verification has: windows, and growth of queries."""

import dataclasses

import pytest
from support.family_models import CHANGES, save_family

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.families.table import FAMILIES
from firp.export.verify import late
from firp.export.verify.checks import verify
from firp.export.verify.rounding import YARDSTICKS

WINDOW = {"sliding_window": 512, "max_position_embeddings": 640}
GROWTH = {
    "max_position_embeddings": 640,
    "rope_parameters": CHANGES["ministral3"]["rope_parameters"] | {"original_max_position_embeddings": 512},
}


def window(size):
    """All windows of another size."""

    def change(model):
        layers = tuple(dataclasses.replace(each, window=each.window and size) for each in model.layers)
        return dataclasses.replace(model, layers=layers)

    return change


def no_growth(model):
    return dataclasses.replace(model, attention=dataclasses.replace(model.attention, growth=None))


def exported(folder, model_type, fields, **options):
    model = save_family(folder / "model", model_type, **fields)
    export_bundle(ExportOptions(model, folder / "bundle", prediction_layer=2, **options))
    return folder / "bundle", model


def late_values(report):
    return [check.value for check in report.checks if " tokens after " in check.name]


@pytest.mark.parametrize(
    ("model_type", "fields", "mutate"),
    [
        ("gemma3_text", WINDOW, window(412)),
        ("gemma3_text", WINDOW, window(None)),
        ("mistral", WINDOW, window(None)),
        ("ministral3", GROWTH, no_growth),
    ],
)
def test_verification_sees_what_begins_late(model_type, fields, mutate, tmp_path, monkeypatch):
    family = FAMILIES[model_type]
    with monkeypatch.context() as patch:
        patch.setitem(FAMILIES, model_type, family._replace(describe=lambda c: mutate(family.describe(c))))
        bundle, model = exported(tmp_path, model_type, fields)
        report = verify(bundle, model)
    assert not report.passed
    assert max(late_values(report)) > 1000 * YARDSTICKS
    others = [check for check in report.checks if " tokens after " not in check.name]
    assert [check for check in others if not check.passed] == []  # which see nothing of it


@pytest.mark.parametrize(
    ("model_type", "fields", "stored"),
    [
        ("mistral", WINDOW, {"dtype": "float16"}),
        ("ministral3", GROWTH, {"dtype": "float32"}),
        ("gemma2", WINDOW, {"quantize": "int8", "quality_limit": 1e9}),  # whose values are smoothed
    ],
)
def test_a_right_bundle_passes_late_too(model_type, fields, stored, tmp_path):
    report = verify(*exported(tmp_path, model_type, fields, **stored))
    assert report.passed
    assert len(late_values(report)) == 6


def test_a_cache_that_is_too_large_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr(late, "_GIB", 1 << 10)
    report = verify(*exported(tmp_path, "mistral", WINDOW | {"hidden_size": 16}))
    (said,) = (check.name for check in report.checks if "not compared" in check.name)
    assert said.startswith("values at 512 tokens not compared: a cache of ")
    assert late_values(report) == []
