"""Verification of quantized bundles: right ones pass, and a seeded error does not hide behind what
rounding to integers costs.
"""

import random
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import pytest
from support.mutations import MUTATIONS, edit_graph, edit_weight
from support.small_models import make_model

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.verify.checks import verify
from firp.export.verify.products import check_products
from firp.runtime.bundle.format import load_bundle
from firp.runtime.engine import Engine

ANY_LOSS = 1e9  # a random model has no quality to lose
WIDE = {"intermediate_size": 128}  # that blocks divide


@pytest.fixture(scope="module", params=["int8", "int4"])
def healthy(request, tmp_path_factory):
    """Model and bundle of 4 layers, split at 2, without predictors."""
    root = tmp_path_factory.mktemp(request.param)
    model = make_model(root / "model", "llama", changes=WIDE)
    options = ExportOptions(model, root / "bundle", prediction_layer=2)
    export_bundle(replace(options, quantize=request.param, quality_limit=ANY_LOSS))
    return model, root / "bundle"


def failed(report):
    return [check.name for check in report.checks if not check.passed]


def test_the_healthy_bundle_passes(healthy):
    model, bundle = healthy
    report = verify(bundle, model)
    names = {check.name.split(",")[0] for check in report.checks}
    assert failed(report) == []
    assert {"integer products", "steps from the model's weights", "plain = generate"} <= names


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_seeded_error_is_caught(mutation, healthy, tmp_path, any_graph):
    model, bundle = healthy
    mutation(shutil.copytree(bundle, tmp_path / "bundle"), random.Random(0))
    report = verify(tmp_path / "bundle", model, check_hashes=False)
    assert failed(report)


def one_off(graph):
    """The zero point of one product is not that of its activations."""
    node = next(node for node in graph.node if node.op_type == "MatMulInteger")
    node.input[2] = "other_zero_point"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(127, np.uint8), "other_zero_point"))


@pytest.mark.parametrize("healthy", ["int8"], indirect=True)
@pytest.mark.parametrize(
    "error",
    [
        partial(edit_graph, name="lower", change=one_off),
        partial(edit_weight, name="layers.1.qkv_proj.scale", change=lambda scale: scale[::-1]),
        partial(edit_weight, name="layers.3.input_norm.weight", change=lambda norm: norm * 1.001),
        partial(edit_weight, name="layers.2.down_proj.smoothing", change=lambda factor: factor[::-1]),
        partial(edit_weight, name="embed_tokens.scale", change=lambda scale: scale * 1.0001),
    ],
    ids=["zero point", "scales of another output", "norm", "smoothing", "scale of the tables"],
)
def test_an_error_of_the_format_itself_is_caught(error, healthy, tmp_path, any_graph):
    model, bundle = healthy
    error(shutil.copytree(bundle, tmp_path / "bundle"))
    assert failed(verify(tmp_path / "bundle", model, check_hashes=False))


@pytest.mark.parametrize("healthy", ["int8"], indirect=True)
def test_kernels_that_never_saturate_give_the_same_integers(healthy):
    """What ONNX Runtime is told on processors without VNNI."""
    loaded = load_bundle(healthy[1])
    options = Engine.load(healthy[1]).backend.options()
    options.add_session_config_entry("session.x64quantprecision", "1")
    assert all(check.passed for check in check_products(loaded, options))
