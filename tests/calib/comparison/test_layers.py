"""The comparison finds the layer that was changed, and nothing where nothing was; TensorRT as far
as it goes without a GPU.
"""

import json
import math
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polygraphy.backend.trt as polygraphy_trt
import pytest
import torch
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.datatype import DataType
from support.command_line import fails, firp
from support.small_models import make_model
from support.tensorrt_target import target_without_gpu

from firp import cli
from firp.calib.commands import verify as verify_command
from firp.calib.comparison.layers import (
    AS_IT_RUNS,
    WITH_LAYERS,
    compare_graphs,
    comparison_points,
    difference,
    reference_runner,
)
from firp.calib.targets.layer_outputs import layer_of, layer_outputs, make_session, with_outputs
from firp.calib.targets.onnx_runtime import OnnxTarget
from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.safetensors_file import read_safetensors
from firp.export.tensorrt.build import BuildOptions, build_engines
from firp.runtime.backends.nvidia_library import gpu_compute_capability, load_library
from firp.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from firp.runtime.bundle.engine_record import find_engine_folder
from firp.runtime.bundle.format import Bundle, load_bundle
from firp.runtime.bundle.graph_spec import PREFIX
from firp.runtime.bundle.limits import Limits
from firp.runtime.errors import CheckFailedError, FirpError


@pytest.fixture(scope="module")
def bundle(family_bundle) -> Bundle:
    """4 layers, split at 2."""
    return load_bundle(family_bundle("llama_untied_biases")[1])


def changed(bundle: Bundle, folder: Path, weight: str, values: float) -> Bundle:
    """A copy with another weight."""
    shutil.copytree(bundle.path, folder)
    record = read_safetensors(folder / "model.safetensors")[weight]
    with record.file.open("r+b") as file:
        file.seek(record.offset)
        file.write(np.full(record.nbytes // 4, values, np.float32).tobytes())
    return load_bundle(folder, check_hashes=False)


def compared(target, bundle: Bundle) -> dict:
    return {(comparison.graph, comparison.form): comparison for comparison in compare_graphs(target, bundle)}


def test_a_whole_bundle_passes(bundle):
    stages = []
    found = list(compare_graphs(OnnxTarget(bundle, "cpu"), bundle, lambda *stage: stages.append(stage)))
    assert [(comparison.graph, comparison.form, comparison.tensors) for comparison in found] == [
        ("lower", AS_IT_RUNS, 5),
        ("lower", WITH_LAYERS, 9),
        ("predictors", AS_IT_RUNS, 1),
        ("upper", AS_IT_RUNS, 9),
        ("upper", WITH_LAYERS, 13),
    ]
    assert all(comparison.check().passed for comparison in found)
    assert all(comparison.worst <= 1e-4 for comparison in found)
    assert {comparison.limit for comparison in found} == {1e-4}
    assert all(comparison.first_beyond is None for comparison in found)
    assert [stage for stage, *_ in stages] == [
        f"comparing {comparison.graph} {comparison.form}" for comparison in found
    ]


def test_float16_is_compared_with_float32(half_bundle):
    loaded = load_bundle(half_bundle)
    found = compared(OnnxTarget(loaded, "cpu"), loaded)
    assert all(comparison.check().passed for comparison in found.values())
    assert all(comparison.limit == 0.25 for comparison in found.values())
    assert found["lower", WITH_LAYERS].worst > 1e-5  # rounding shows: the reference is not the graph itself


@pytest.mark.parametrize(
    ("weight", "first", "first_declared"),
    [
        ("layers.1.qkv_proj.weight", "present_key.1", "present_key.1"),
        ("layers.0.o_proj.weight", "layers.0.attention_out", "present_key.1"),
        ("layers.1.down_proj.weight", "layers.1.out", "hidden_states"),
        ("layers.2.mlp_norm.weight", "layers.2.out", "present_key.3"),
        ("layers.3.down_proj.weight", "layers.3.out", "logits"),
    ],
)
def test_the_changed_layer_is_the_first_beyond(weight, first, first_declared, bundle, tmp_path):
    found = compared(OnnxTarget(changed(bundle, tmp_path / "changed", weight, 0.5), "cpu"), bundle)
    layer = layer_of(weight)
    half, other = ("lower", "upper") if layer < 2 else ("upper", "lower")
    within, declared = found[half, WITH_LAYERS], found[half, AS_IT_RUNS]
    assert (within.first_beyond, within.layer) == (first, layer)
    assert within.worst > within.limit
    assert declared.first_beyond == first_declared
    assert within.check().name == f"{half} with layer outputs, first beyond: {first}"
    assert not within.check().passed
    assert found[other, WITH_LAYERS].check().passed
    assert found["predictors", AS_IT_RUNS].check().passed


def test_nan_is_beyond(bundle, tmp_path):
    found = compared(
        OnnxTarget(changed(bundle, tmp_path / "changed", "layers.3.o_proj.weight", math.nan), "cpu"), bundle
    )
    assert found["upper", WITH_LAYERS].first_beyond == "layers.3.attention_out"
    assert found["upper", AS_IT_RUNS].layer is None
    assert all(math.isnan(found["upper", form].worst) for form in (AS_IT_RUNS, WITH_LAYERS))


def test_tokens_are_compared_by_their_logits():
    theirs = {"logits": np.array([[[5.0, 3.0, 3.00001]]], np.float32), "top_ids": np.array([[[0, 2]]])}
    assert difference("top_ids", {"top_ids": np.array([[[0, 2]]])}, theirs) == 0
    assert 0 < difference("top_ids", {"top_ids": np.array([[[0, 1]]])}, theirs) < 1e-4
    assert difference("top_ids", {"top_ids": np.array([[[1, 2]]])}, theirs) == pytest.approx(2)
    for wrong in ([[[0, 3]]], [[[-1, 2]]], [[[0]]]):
        assert difference("top_ids", {"top_ids": np.array(wrong)}, theirs) == math.inf


def test_passes_are_cut_to_what_is_there():
    assert [tuple(point) for point in comparison_points(2048, None)] == [(1, 64, 1), (16, 64, 1)]
    assert [tuple(point) for point in comparison_points(12, None)] == [(1, 6, 1), (6, 6, 1)]
    assert [tuple(point) for point in comparison_points(2048, Limits(40, 1, 8))] == [(1, 40, 1), (8, 40, 1)]
    assert [tuple(point) for point in comparison_points(1, None)] == [(1, 0, 1)]


def test_a_graph_without_names_and_a_cancelled_comparison(bundle):
    with pytest.raises(
        FirpError, match=r"does not name its layers' outputs . got no layers.2.attention_out.*Fix: export"
    ):
        layer_outputs(bundle.graph_path(bundle.manifest.graphs["lower"]), range(3))
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(FirpError, match="interrupted . got the comparison of lower"):
        list(compare_graphs(OnnxTarget(bundle, "cpu"), bundle, cancel=cancel))


def test_bfloat16_goes_through_torch(tmp_path):
    """A runner that takes and gives bfloat16, as an engine's does."""
    export_bundle(
        ExportOptions(make_model(tmp_path / "model", "llama"), tmp_path / "bundle", dtype="bfloat16")
    )
    loaded, kinds = load_bundle(tmp_path / "bundle"), set()

    class HalfRunner(BaseRunner):
        def __init__(self, inner, inputs):
            super().__init__(prefix="half")
            self.inner, self.inputs = inner, inputs

        def activate_impl(self):
            self.inner.activate()

        def deactivate_impl(self):
            self.inner.deactivate()

        def get_input_metadata_impl(self):
            found = self.inner.get_input_metadata(use_numpy_dtypes=False)
            for name, (dtype, _) in found.items():
                found[name].dtype = self.inputs[name] if dtype.is_floating else dtype
            return found

        def infer_impl(self, feed):
            kinds.update(tensor.dtype for tensor in feed.values() if isinstance(tensor, torch.Tensor))
            self.inference_time = 0.0
            assert all(
                torch.isfinite(array).all() for array in feed.values() if isinstance(array, torch.Tensor)
            )
            wide = {
                name: array.float() if isinstance(array, torch.Tensor) else array
                for name, array in feed.items()
            }
            made = {name: torch.as_tensor(array) for name, array in self.inner.infer(wide).items()}
            return {
                name: array.bfloat16() if array.is_floating_point() else array for name, array in made.items()
            }

    def runner(graph, names, report, cancel):
        spec = graphs[graph]
        declared = tuple(tensor.name for tensor in spec.outputs)
        return HalfRunner(
            reference_runner(loaded.graph_path(spec), declared + names),
            {tensor.name: DataType.BFLOAT16 for tensor in spec.inputs},
        )

    graphs = loaded.manifest.graphs_for(PREFIX)
    found = compared(SimpleNamespace(limits=None, runner=runner, graphs=graphs), loaded)
    assert kinds == {torch.bfloat16}
    assert set(found) == {(half, form) for half in ("lower", "upper") for form in (AS_IT_RUNS, WITH_LAYERS)}
    assert all(comparison.check().passed for comparison in found.values())
    assert all(comparison.limit == 2.0 for comparison in found.values())
    assert all(comparison.worst > 1e-4 for comparison in found.values())


def half_runner(path, outputs):
    """The graph as it is, in float16."""
    options = OnnxRuntimeBackend().options()
    model = with_outputs(path, outputs)
    return OnnxrtRunner(lambda: make_session(model, path.parent, options, "CPUExecutionProvider"))


def test_an_engine_with_layer_outputs_is_built(half_bundle, monkeypatch):
    """All but execution: the built plan first, then one that gives the layers, for this GPU; passes
    as the engines hold them.
    """
    record = build_engines(half_bundle, BuildOptions("tensorrt-rtx", Limits(200, 1, 8), ("8.9",)))
    loaded, plans, rows, shares = load_bundle(half_bundle), [], [], []
    graphs = loaded.manifest.graphs_for(PREFIX)
    engines = find_engine_folder(loaded, "tensorrt-rtx", record.library_version, "8.9")
    target = target_without_gpu(monkeypatch, loaded, load_library("tensorrt-rtx"), engines)

    def trt_runner(plan, optimization_profile):
        assert optimization_profile == 0
        plans.append(plan)
        graph = ("lower", "lower", "predictors", "upper", "upper")[len(plans) - 1]
        tensors = names[graph] if isinstance(plan, memoryview) else ()
        spec = graphs[graph]
        declared = tuple(tensor.name for tensor in spec.outputs)
        runner = half_runner(loaded.graph_path(spec), declared + tensors)
        infer, first = runner.infer, spec.inputs[0].name  # [B, T, ...]
        runner.infer = lambda feed_dict: rows.append(feed_dict[first].shape[1]) or infer(feed_dict)
        return runner

    names = {
        "lower": layer_outputs(loaded.graph_path(graphs["lower"]), (0, 1)),
        "upper": layer_outputs(loaded.graph_path(graphs["upper"]), (2, 3)),
    }
    monkeypatch.setattr(polygraphy_trt, "EngineFromBytes", lambda plan: plan)
    monkeypatch.setattr(polygraphy_trt, "TrtRunner", trt_runner)
    found = list(compare_graphs(target, loaded, lambda stage, done, total: shares.append((stage, done))))
    assert [comparison.tensors for comparison in found] == [5, 9, 1, 9, 13]
    assert all(comparison.check().passed for comparison in found)
    assert [isinstance(plan, memoryview) for plan in plans] == [False, True, False, False, True]
    built = next((half_bundle / "engines").iterdir())
    for plan, graph in ((plans[1], "lower"), (plans[4], "upper")):
        for tensor in names[graph]:
            assert tensor.encode() in bytes(plan)
        assert plan.nbytes < 1.1 * (built / f"{graph}.plan").stat().st_size
    assert plans[0]()[:64] == (built / "lower.plan").read_bytes()[:64]
    assert rows == [1, 8] * 5
    assert any(done > 0 for stage, done in shares if stage == "comparing lower with layer outputs")


def test_the_command_fails_with_the_tensor(bundle, tmp_path, monkeypatch, capsys):
    other = changed(bundle, tmp_path / "changed", "layers.3.down_proj.weight", 0.5)
    monkeypatch.setattr(verify_command, "open_target", lambda _, backend: OnnxTarget(other, backend))
    with pytest.raises(
        CheckFailedError,
        match=r"verification failed . got upper as it runs, first beyond: logits, upper with lay",
    ):
        cli.command_line().main(["verify", str(bundle.path), "--layers"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert re.search(r"upper, layers +│ +13 .* layers\.3\.out │ +3 ", shown)
    assert re.search(r"lower, layers .* - │ +- ", shown)


def test_the_command_on_a_whole_bundle(bundle):
    result = firp("verify", bundle.path, "--layers", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["passed"]
    assert {"name": "upper with layer outputs", "passed": True} in [
        {key: check[key] for key in ("name", "passed")} for check in report["checks"]
    ]
    assert len(report["layers"]) == 5
    assert report["layers"][1]["tensors"] == 9
    assert report["layers"][1]["first_beyond"] is None
    assert "layers" not in json.loads(firp("verify", bundle.path, "--json").stdout)


def test_without_polygraphy_it_says_what_to_install(bundle):
    hidden = "import sys; sys.modules['polygraphy'] = None; from firp.cli import main; main()"
    arguments = [sys.executable, "-c", hidden, "verify", str(bundle.path)]
    result = subprocess.run([*arguments, "--layers"], capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert (
        "verify --layers needs polygraphy | got not installed. Fix: pip install 'firp[profile]'"
        in result.stderr
    )
    assert subprocess.run(arguments, capture_output=True).returncode == 0


@pytest.mark.skipif(gpu_compute_capability() is not None, reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(half_bundle):
    assert "no usable CUDA device" in fails("verify", half_bundle, "--layers", "--backend", "tensorrt-rtx")
