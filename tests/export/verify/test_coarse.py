"""Models in which nothing but the error of elementwise functions is left: they pass, wrong ones do not."""

import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from support.family_models import save_family

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.families.table import FAMILIES
from firp.export.verify.checks import verify
from firp.export.verify.coarse import ERROR, CoarseFunctions
from firp.export.verify.rounding import YARDSTICKS

# whose MLP has one feature, and a norm after it
ONE_FEATURE = {
    "initializer_range": 0.35, "vocab_size": 193, "hidden_size": 64, "num_key_value_heads": 1,
    "intermediate_size": 1, "head_dim": 16, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0,
    "layer_types": ["full_attention", "full_attention", "sliding_attention"], "sliding_window": 2,
}  # fmt: skip


def onnx_function(name, values):
    ends = [[helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n"])] for end in "xy"]
    graph = helper.make_graph([helper.make_node(name, ["x"], ["y"])], name, *ends)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": values})[0]


@pytest.mark.parametrize("name", ["Tanh", "Sigmoid"])
def test_the_error_is_that_of_onnx_runtime(name):
    values = np.linspace(-9, 9, 100_001).astype(np.float32)
    true = getattr(torch, name.lower())(torch.from_numpy(values).double()).numpy()
    assert ERROR / 20 < np.abs(onnx_function(name, values) - true).max() <= ERROR


def test_functions_are_off_by_no_more():
    values = torch.linspace(-6, 6, 10_001, dtype=torch.float64)
    for function, share in (
        (torch.tanh, 1.0),
        (torch.sigmoid, 1.0),
        (torch.nn.functional.silu, values.abs()),
    ):
        with CoarseFunctions(0):
            coarse = function(values)
        off = (coarse - function(values)).abs()
        assert off.max() > 0
        assert (off <= ERROR * share + 1e-15).all()


def export(tmp_path, change=lambda model: model):
    family = FAMILIES["gemma2"]
    with pytest.MonkeyPatch.context() as patch:
        wrong = family._replace(describe=lambda c: change(family.describe(c)))
        patch.setitem(FAMILIES, "gemma2", wrong)
        model = save_family(tmp_path / "model", "gemma2", 1, **ONE_FEATURE)
        export_bundle(ExportOptions(model, tmp_path / "bundle", prediction_layer=2))
    return verify(tmp_path / "bundle", model, check_hashes=False)


def test_a_model_of_one_feature_passes(tmp_path):
    assert [check for check in export(tmp_path).checks if not check.passed] == []


def test_another_activation_is_refused_there_too(tmp_path):
    report = export(
        tmp_path,
        lambda model: dataclasses.replace(model, mlp=dataclasses.replace(model.mlp, activation="gelu")),
    )
    values = [check.value for check in report.checks if check.name.startswith(("prefill", "decode", "tree"))]
    assert min(values) > 5 * YARDSTICKS
