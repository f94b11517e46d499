"""Near ties of routing: a float16 bundle is not refused for one, and no error hides behind it."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.family_models import save_family
from support.mutations import edit_weight

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.export.verify.checks import _samples, _values_against_float64
from firp.export.verify.reference import Reference
from firp.export.verify.routing import NearTies, margin_of
from firp.export.verify.rows import Rows, StageRows
from firp.runtime.engine import Engine


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_family(tmp_path_factory.mktemp("routing") / "model", "qwen3_moe")


@pytest.fixture(scope="module")
def bundle(model):
    export_bundle(ExportOptions(model, model.parent / "bundle", prediction_layer=2, dtype="float16"))
    return model.parent / "bundle"


def checks_of(model, bundle):
    engine = Engine.load(bundle, check_hashes=False)
    reference = Reference(open_checkpoint(model), "float16")
    return _values_against_float64(engine, reference, "float16", _samples(engine))


def failed(checks):
    return [check.name for check in checks if not check.passed]


def test_rows_after_a_near_tie_are_reported_and_not_judged(model, bundle, monkeypatch):
    checks = checks_of(model, bundle)
    assert failed(checks) == []
    (beside,) = (check for check in checks if check.name.startswith("rows that depend"))
    assert 0 < beside.value < beside.limit
    assert {tie.tree for tie in beside.near_ties} <= {"routing, prompt", "routing, tree"}
    assert all(0 <= tie.difference.margin < 0.1 for tie in beside.near_ties)
    real = NearTies.__new__

    def blind(kind, dependent, margins):
        none = [type(s)(*(type(p)(*map(np.zeros_like, p)) for p in s)) for s in dependent]
        return real(kind, none, margins)

    monkeypatch.setattr(NearTies, "__new__", blind)
    assert "prefill logits, random tokens" in failed(checks_of(model, bundle))


def test_pieces_of_prompts_are_tried_where_no_row_is_left(model, bundle, monkeypatch):
    monkeypatch.setattr(NearTies, "leave_rows", lambda *_: False)
    checks = checks_of(model, bundle)
    assert failed(checks) == []
    rows = next(check.limit for check in checks if check.name.startswith("rows that")) + 1
    assert rows > 2 * 2 * (48 + 48 + 12)  # parts, prompts, rows of stages


def test_a_stage_without_rows_to_judge_is_seen():
    def sample(tree):
        some, none = (Rows(np.array([wrong]), np.array([wrong])) for wrong in (False, True))
        return StageRows(some, some, none if tree else some)

    ties = NearTies([sample(True), sample(False), sample(True)], [])
    assert ties.leave_rows([2])
    assert not ties.leave_rows([2, 1])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layers.2.router.weight", lambda weight: weight[::-1]),
        ("layers.2.experts.1.down_proj.weight", lambda weight: weight * np.float16(1.25)),
        ("layers.0.experts.0.gate_up_proj.weight", lambda weight: weight[::-1]),
    ],
    ids=["experts of others", "one expert is louder", "gate and up swapped"],
)
def test_an_error_is_caught_in_rows_that_depend_on_none(name, change, model, bundle, tmp_path):
    edit_weight(shutil.copytree(bundle, tmp_path / "bundle"), name, change)
    assert failed(checks_of(model, tmp_path / "bundle"))


def config(**fields):
    plain = {"score": "softmax", "groups": 1, "groups_kept": 1, "groups_rated_by": 1, "per_token": 2}
    return SimpleNamespace(**plain | {"jitter": None} | fields)


def test_a_margin_is_what_the_last_chosen_is_ahead():
    scores = torch.tensor([[0.5, 0.1, 0.45, 0.3], [0.2, 0.4, 0.1, 0.3]])
    np.testing.assert_allclose(margin_of(config(), scores), [0.15, 0.1], rtol=1e-5)
    assert torch.isinf(margin_of(config(per_token=4), scores)).all()


def test_groups_can_be_close_where_experts_are_not():
    scores = torch.tensor([[0.5, 0.3, 0.49, 0.1], [0.9, 0.85, 0.2, 0.1]])
    groups = config(groups=2, per_token=1)
    np.testing.assert_allclose(margin_of(groups, scores), [0.01, 0.05], rtol=1e-4)


def test_a_mixer_is_close_where_an_expert_is_nearly_left_out():
    logits = torch.tensor([[2.0, 1.0, -3.0, -9.0], [2.0, 1.5, 1.19, -9.0]])
    found = margin_of(config(score="sparsemixer", jitter=0.2), logits)
    np.testing.assert_allclose(found, [0.2, 0.01], rtol=1e-4)
