"""Experts as integers: what each is decided on, what becomes of one that no row reaches, and where its
weights lie.
"""

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.torch import load_file, save_file
from support.family_models import save_family

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.quantize.decision import Decision
from firp.export.quantize.formats import quantize
from firp.export.quantize.outputs import record
from firp.export.quantize.plan import make_plan
from firp.export.sources.open import open_checkpoint
from firp.export.weights.stream import read_array
from firp.runtime.backends import onnx_runtime
from firp.runtime.bundle.precision import BLOCKS4, ROWS
from firp.runtime.commands.shown import quantization_lines
from firp.runtime.progress import silent

TOKENS = np.random.default_rng(0).integers(0, 61, (4, 64))
UNREACHED = "layers.1.experts.0"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """8 experts in layers 1 and 2, of which a row chooses 3; no row chooses the first of layer 1."""
    model = save_family(tmp_path_factory.mktemp("experts") / "model", "dots1", n_group=1, topk_group=1)
    tensors = load_file(model / "model.safetensors")
    for layer in (1, 2):
        tensors[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"][:] = 0
    tensors["model.layers.1.mlp.gate.e_score_correction_bias"][0] = -100
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    return model


def plan_of(model, method, folder):
    return make_plan(open_checkpoint(model), method, TOKENS, folder, silent)


def test_experts_are_decided_on_the_rows_that_they_get(model, tmp_path, monkeypatch):
    decide, seen = Decision.__call__, {}

    def recorded(self, weights, inputs, rows):
        seen.update(zip([weight.name for weight in weights], map(len, rows), strict=True))
        decide(self, weights, inputs, rows)

    monkeypatch.setattr(Decision, "__call__", recorded)
    plan_of(model, "int8", tmp_path)
    for layer in (1, 2):
        for part in ("gate_up_proj", "down_proj"):
            counts = [seen[f"layers.{layer}.experts.{expert}.{part}.weight"] for expert in range(8)]
            assert sum(counts) == 3 * TOKENS.size
            assert max(counts) < TOKENS.size
            assert seen[f"layers.{layer}.shared.{part}.weight"] == TOKENS.size
    assert seen[f"{UNREACHED}.down_proj.weight"] == 0


@pytest.mark.parametrize(("method", "form"), [("int8", ROWS), ("int4", BLOCKS4)])
def test_an_expert_that_no_row_reaches_is_rounded_as_it_is(method, form, model, tmp_path):
    plan = plan_of(model, method, tmp_path)
    checkpoint = open_checkpoint(model)
    (weight,) = (each for each in checkpoint.weights if each.name == f"{UNREACHED}.gate_up_proj.weight")
    found = plan.linears[f"{UNREACHED}.gate_up_proj"]
    assert found.format.format == form
    assert found.format.rows_error is None
    values = read_array(weight, checkpoint.tensors)
    smoothing = np.ones(values.shape[1], np.float32) if found.smoothing is None else found.smoothing
    np.testing.assert_array_equal(found.integers().weight, quantize(values * smoothing, form).weight)
    quantization = record(checkpoint, plan)
    assert quantization.unreached == [UNREACHED]
    assert "1 experts that the calibration text never reaches" in quantization_lines(quantization)[1]


def test_readers_of_one_norm_share_its_factors(model, tmp_path):
    plan = plan_of(model, "int8", tmp_path)
    first = plan.smoothing["layers.2.experts.0.gate_up_proj"]
    assert first.std() > 0
    for reader in (*(f"experts.{expert}" for expert in range(1, 8)), "shared"):
        np.testing.assert_array_equal(plan.smoothing[f"layers.2.{reader}.gate_up_proj"], first)
    own = [plan.smoothing[f"layers.2.experts.{expert}.down_proj"] for expert in (1, 2)]
    assert not np.array_equal(*own)


def test_weights_of_experts_turn_to_uint8_without_vnni(model, tmp_path, monkeypatch):
    """Where their products would be cut off. ONNX Runtime turns what lies in the branch itself."""
    options = ExportOptions(model, tmp_path / "bundle", quantize="int8", quality_limit=1e9)
    export_bundle(options)
    monkeypatch.setattr(onnx_runtime, "sums_int8_exactly", lambda: False)
    settings = onnx_runtime.OnnxRuntimeBackend().options()
    settings.optimized_model_filepath = str(tmp_path / "made.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "bundle" / "upper.onnx"), settings)
    made = onnx.load(tmp_path / "made.onnx", load_external_data=False).graph
    kinds = [kind for graph in (made, *branches(made)) for kind in kinds_of_products(graph)]
    assert kinds == [onnx.TensorProto.UINT8] * len(kinds)
    assert len(kinds) == 2 + 2 * (8 + 1) + 1  # attention, experts and what is shared, the head


def branches(graph):
    return [part.g for node in graph.node for part in node.attribute if part.HasField("g")]


def kinds_of_products(graph):
    kinds = {weight.name: weight.data_type for weight in graph.initializer}
    return [kinds.get(node.input[1]) for node in graph.node if node.op_type == "MatMulInteger"]
