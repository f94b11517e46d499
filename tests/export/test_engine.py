"""Engines built on the CPU with TensorRT-RTX: what their plans launch, what engine.json says, and how a build fails."""

import sys
import threading
from types import SimpleNamespace

import onnx_ir as ir
import pytest
import torch
from conftest import DEMO_MODEL
from small_models import make_model, make_predictors
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from firp.export import decoder, engine, plan_builder
from firp.export.bundle_writer import ExportOptions, export_bundle
from firp.export.engine import BuildOptions, build_engines, check_limits, check_memory, choose_capabilities
from firp.export.plan import read_plan, summarize
from firp.export.plan_builder import Target, build_plan
from firp.runtime.bundle import load_bundle
from firp.runtime.engine_plans import Limits, find_engines
from firp.runtime.errors import FirpError
from firp.runtime.session import PREFILL_ROWS
from firp.runtime.tensorrt_library import gpu_compute_capability, load_library

RTX = "tensorrt-rtx"
ONE_DEVICE = BuildOptions(RTX, compute_capabilities=("8.9",))


@pytest.fixture(scope="module")
def demo16(tmp_path_factory):
    """The demo model in float16, and its engines."""
    bundle = tmp_path_factory.mktemp("demo16") / "bundle"
    export_bundle(ExportOptions(DEMO_MODEL, bundle, DEMO_MODEL / "predictors", dtype="float16"))
    return bundle, build_engines(bundle, ONE_DEVICE)


@pytest.fixture
def small(tmp_path):
    """A bundle of 4 layers that builds in a second."""
    model = make_model(tmp_path / "model", "llama")
    predictors = make_predictors(tmp_path / "predictors", model)
    export_bundle(ExportOptions(model, tmp_path / "bundle", predictors, dtype="float16"))
    return tmp_path / "bundle"


def synthetic(folder, config, dtype):
    """A bundle of random weights, split at three quarters."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    predictors = make_predictors(folder / "predictors", folder / "model", prediction_layer=config.num_hidden_layers * 3 // 4)
    export_bundle(ExportOptions(folder / "model", folder / "bundle", predictors, dtype=dtype))
    return folder / "bundle"


def launches(bundle, record):
    """graph -> a summary for each profile."""
    engines = find_engines(load_bundle(bundle), RTX, record.library_version, record.compute_capabilities[0])
    return {name: [summarize(kernels) for kernels in read_plan(engines.plan_path(name))] for name in record.plans}


def check_fusions(bundle, record, launches_per_layer):
    """In every layer of every profile one fused attention and four GEMMs (q, k and v are one, gate and up another), and keys and
    values that only the concat before the attention copies.
    """
    manifest, found = load_bundle(bundle).manifest, launches(bundle, record)
    layers = {"lower": manifest.prediction_layer, "upper": manifest.model.num_hidden_layers - manifest.prediction_layer}
    for graph, count in layers.items():
        assert len(found[graph]) == 2  # decode and prefill
        for summary in found[graph]:
            assert (summary.attentions, summary.copied_caches) == (count, 0), graph
            assert summary.gemms == 4 * count + (graph == "upper"), graph  # the upper graph has the output layer too
            assert summary.launches <= launches_per_layer * count + 6, graph
            assert count == 1 or summary.launches_per_layer <= launches_per_layer
    assert all(summary.launches <= 3 and summary.gemms == 1 for summary in found["predictors"])


def test_demo_model_launches(demo16):
    check_fusions(*demo16, launches_per_layer=12)


def test_16_layers_with_grouped_queries_launch(tmp_path):
    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=448, num_hidden_layers=16, num_attention_heads=8, num_key_value_heads=2,
        head_dim=64, max_position_embeddings=2048,
    )  # fmt: skip
    bundle = synthetic(tmp_path, config, "float16")
    check_fusions(bundle, build_engines(bundle, ONE_DEVICE), launches_per_layer=12)


def test_bfloat16_with_norms_on_queries_and_batches_launches(tmp_path):
    config = Qwen3Config(
        vocab_size=512, hidden_size=256, intermediate_size=448, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=1,
        head_dim=128, max_position_embeddings=2048,
    )  # fmt: skip
    bundle = synthetic(tmp_path, config, "bfloat16")
    record = build_engines(bundle, BuildOptions(RTX, Limits(max_batch=4)))
    check_fusions(bundle, record, launches_per_layer=14)
    assert record.compute_capabilities[0] == (gpu_compute_capability() or "8.0")


def test_a_lost_fusion_is_seen(small, tmp_path, monkeypatch):
    """Attention with capped scores, written out: TensorRT-RTX does not fuse it, and the summary says what that costs."""
    builder_op = decoder.GraphBuilder.op

    def op(self, op_type, *inputs, **attributes):
        if op_type != "Attention":
            return builder_op(self, op_type, *inputs, **attributes)
        query, keys, values, bias = inputs
        heads, shared = self.config.num_attention_heads, self.config.num_key_value_heads
        keys, values = (
            builder_op(self, "Concat", *(head for head in self.tape.op_multi_out(
                "Split", [each], {"axis": 1, "num_outputs": shared}, num_outputs=shared) for _ in range(heads // shared)), axis=1)
            for each in (keys, values)
        )  # fmt: skip
        scores = builder_op(self, "MatMul", query, builder_op(self, "Transpose", keys, perm=[0, 1, 3, 2]))
        capped = builder_op(self, "Mul", builder_op(self, "Tanh", scores), self.scalar(30.0))
        return builder_op(self, "MatMul", builder_op(self, "Softmax", builder_op(self, "Add", capped, bias), axis=-1), values)

    monkeypatch.setattr(decoder.GraphBuilder, "op", op)
    export_bundle(ExportOptions(tmp_path / "model", tmp_path / "written_out", tmp_path / "predictors", dtype="float16"))
    record = build_engines(tmp_path / "written_out", ONE_DEVICE)
    lower = launches(tmp_path / "written_out", record)["lower"][0]
    assert (lower.attentions, lower.copied_caches) == (0, 4) and lower.gemms > 8
    with pytest.raises(AssertionError):
        check_fusions(tmp_path / "written_out", record, launches_per_layer=12)


def test_engine_json_says_what_was_built(demo16):
    bundle, record = demo16
    engines = find_engines(load_bundle(bundle), RTX, load_library(RTX).__version__, "8.9")
    assert engines.record == record and engines.folder.name == f"{RTX}-{record.library_version}-sm89"
    assert sorted(path.name for path in engines.folder.iterdir()) == ["engine.json", "lower.plan", "predictors.plan", "upper.plan"]
    assert record.limits == Limits(max_context=2048)  # the model's own context is smaller than the default limit
    decode, prefill = record.profiles["upper"]
    assert (decode.name, prefill.name) == ("decode", "prefill")
    assert decode.shapes["hidden_states"] == ((1, 1, 256), (1, 16, 256), (1, 64, 256))
    assert decode.shapes["attention_bias"][2] == (1, 1, 64, 2048 + 64) and decode.shapes["past_key.6"][0] == (0, 1, 2, 64)
    assert prefill.shapes["hidden_states"][2] == (1, PREFILL_ROWS + 3, 256) and prefill.shapes["logits_rows"][2] == (1, 4)
    assert record.profiles["lower"][1].shapes["input_ids"][2] == (1, PREFILL_ROWS)
    assert record.peak_bytes > 0 and all(seconds > 0 for seconds in record.build_seconds.values())


def test_engines_are_replaced_only_by_force(small):
    first = build_engines(small, ONE_DEVICE)
    with pytest.raises(FirpError, match=r"built already.*sm89.*Fix: replace them with --force"):
        build_engines(small, ONE_DEVICE)
    again = build_engines(small, BuildOptions(RTX, Limits(max_rows=8), ("8.9",), force=True))
    engines = find_engines(load_bundle(small), RTX, first.library_version, "8.9")
    assert engines.record == again and again.limits.max_rows == 8


@pytest.mark.parametrize("stop_at", ["lower", "upper"])
def test_a_cancelled_build_leaves_nothing(stop_at, small):
    cancel, seen = threading.Event(), []

    def progress(stage, done, total):
        seen.append((stage, done / total))
        if stage == f"building {stop_at}" and done > 0 and len(seen) > 3:
            cancel.set()

    before = sorted(path.name for path in small.iterdir())
    with pytest.raises(FirpError, match=f"interrupted.*{stop_at}"):
        build_engines(small, ONE_DEVICE, progress, cancel)
    assert sorted(path.name for path in small.iterdir()) == before
    shares = [share for _, share in seen]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] <= 1


def test_a_float32_bundle_is_refused(demo_bundle):
    with pytest.raises(FirpError, match="float32.*Fix: export with --dtype float16"):
        build_engines(demo_bundle, ONE_DEVICE)


def test_no_library_or_another_version(monkeypatch, small):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(FirpError, match=r"not installed.*Fix: pip install 'firp\[tensorrt-rtx\]'"):
        build_engines(small, ONE_DEVICE)
    for backend, module, version in (
        ("tensorrt", "tensorrt", "10.14.1"), ("tensorrt", "tensorrt", "12.0.0"), (RTX, "tensorrt_rtx", "2.0.0.1"),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(__version__=version))
        with pytest.raises(FirpError, match=f"unsupported {backend} version . got {version}.*Fix: pip install"):
            build_engines(small, BuildOptions(backend))


@pytest.mark.parametrize("limits", [Limits(max_rows=3), Limits(max_rows=2000), Limits(max_batch=0), Limits(max_context=0)])
def test_limits_out_of_range(limits, small):
    with pytest.raises(FirpError, match=r"--max-(rows|batch|context) out of range"):
        check_limits(limits, load_bundle(small).manifest)


def test_too_little_memory_or_disk_is_refused_with_the_sum(small, monkeypatch):
    manifest = load_bundle(small).manifest
    with pytest.raises(FirpError, match=r"to build lower.*0.25 GiB free.*4.01 GiB = weights 3.70 \+ kernels 0.03 \+ library 0.28"):
        check_memory(manifest, {"lower": 2**30, "predictors": 10**6, "upper": 2**29}, 2**28)
    check_memory(manifest, {"lower": 2**30, "upper": 2**29}, 5 * 2**30)
    monkeypatch.setattr(engine.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(FirpError, match="not enough disk space for engines"):
        build_engines(small, ONE_DEVICE)
    assert not (small / "engines").exists()


def test_devices():
    rtx, tensorrt = load_library(RTX), SimpleNamespace()
    assert choose_capabilities(rtx, BuildOptions(RTX), None) == ("8.0", "8.6", "8.9", "12.0", "12.1")
    assert choose_capabilities(rtx, BuildOptions(RTX), "7.5") == ("7.5",)
    assert choose_capabilities(rtx, BuildOptions(RTX, compute_capabilities=("12.0", "8.9")), None) == ("8.9", "12.0")
    assert choose_capabilities(tensorrt, BuildOptions("tensorrt"), "9.0") == ("9.0",)
    with pytest.raises(FirpError, match=r"got compute capability 9.0, expected 7.5, 8.0.*Fix: use --backend tensorrt"):
        choose_capabilities(rtx, BuildOptions(RTX), "9.0")
    with pytest.raises(FirpError, match=r"got compute capability new, expected 7.5"):
        choose_capabilities(rtx, BuildOptions(RTX, compute_capabilities=("new",)), None)
    with pytest.raises(FirpError, match="no CUDA device.*Fix: build on the target"):
        choose_capabilities(tensorrt, BuildOptions("tensorrt"), None)
    with pytest.raises(FirpError, match="builds for the GPU that is here . got 8.9, expected 9.0"):
        choose_capabilities(tensorrt, BuildOptions("tensorrt", compute_capabilities=("8.9",)), "9.0")


def test_bfloat16_is_refused_on_devices_without_it(tmp_path):
    model = make_model(tmp_path / "model", "llama")
    export_bundle(ExportOptions(model, tmp_path / "bundle", dtype="bfloat16"))
    with pytest.raises(FirpError, match="bfloat16 needs compute capability 8.0 . got 7.5"):
        build_engines(tmp_path / "bundle", BuildOptions(RTX, compute_capabilities=("7.5", "8.9")))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorRT-RTX has no use for a timing cache
def test_tensorrt_takes_the_same_way(small, monkeypatch):
    """TensorRT-RTX under TensorRT's name, without what TensorRT lacks: plans are for the GPU that is here, and timings are kept."""
    rtx = load_library(RTX)
    names = {name: getattr(rtx, name) for name in dir(rtx) if name != "ComputeCapability"}
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(**{**names, "__version__": "10.15.1"}))
    monkeypatch.setattr(engine, "gpu_compute_capability", lambda: "9.0")
    record = build_engines(small, BuildOptions("tensorrt"))
    assert (record.backend, record.compute_capabilities) == ("tensorrt", ("9.0",))
    folder = find_engines(load_bundle(small), "tensorrt", "10.15.1", "9.0").folder
    assert folder.name == "tensorrt-10.15.1-sm90" and (folder / "timing.cache").stat().st_size > 0
    opened, open_cache = [], plan_builder._open_timing_cache
    monkeypatch.setattr(plan_builder, "_open_timing_cache", lambda c, path: opened.append(path.is_file()) or open_cache(c, path))
    build_engines(small, BuildOptions("tensorrt", force=True))
    assert opened == [True] * 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_timings_of_no_use_are_dropped(tmp_path):
    library = load_library(RTX)
    builder = library.Builder(plan_builder.make_logger(library))
    for content in (None, b"", b"of another version"):
        path = tmp_path / "timing.cache"
        if content is not None:
            path.write_bytes(content)
        assert plan_builder._open_timing_cache(builder.create_builder_config(), path).serialize().nbytes > 0


def rewrite(bundle, change):
    """The lower graph after `change(graph)`, and the declaration that fits it but for the change."""
    path, spec = bundle / "lower.onnx", load_bundle(bundle).manifest.graphs["lower"]
    model = ir.load(path)
    change(model.graph)
    ir.save(model, bundle / "changed.onnx")
    profiles = engine.graph_profiles(spec, 3, Limits(max_context=64))
    target = Target(load_library(RTX), ("8.9",), None)
    return lambda declared=spec: build_plan(target, bundle / "changed.onnx", declared, profiles, lambda _: None, threading.Event())


def test_an_input_that_the_parser_drops_is_an_error(small):
    """nonpad_kv_seqlen (the seventh input of Attention): TensorRT's parser says nothing about it."""
    extra = ir.Value(name="seqlen", shape=ir.Shape(["B"]), type=ir.TensorType(ir.DataType.INT64))

    def change(graph):
        graph.inputs.append(extra)
        for node in graph:
            if node.op_type == "Attention":
                node.resize_inputs(7)
                node.replace_input_with(6, extra)

    build = rewrite(small, change)
    with pytest.raises(FirpError, match="the library reads other inputs of lower . got seqlen INT64"):
        build()
    spec = load_bundle(small).manifest.graphs["lower"]
    declared = type(spec)("lower", (*spec.inputs, type(spec.inputs[0])("seqlen", "int64", ("B",))), spec.outputs)
    with pytest.raises(FirpError, match="the library drops inputs of lower . got seqlen"):
        build(declared)


def test_another_type_or_rank_is_an_error(small):
    spec = load_bundle(small).manifest.graphs["lower"]
    tensor = type(spec.inputs[0])
    build = rewrite(small, lambda _: None)
    for declared in (("input_ids", "float16", ("B", "T")), ("input_ids", "int64", ("B", "T", 1)), ("ids", "int64", ("B", "T"))):
        with pytest.raises(FirpError, match=r"reads other inputs of lower . got input_ids INT64 \[-1, -1\], expected i"):
            build(type(spec)("lower", (tensor(*declared), *spec.inputs[1:]), spec.outputs))
    with pytest.raises(FirpError, match="reads other outputs of lower"):
        build(type(spec)("lower", spec.inputs, spec.outputs[:-1]))
    assert build().nbytes > 0


def test_a_warning_that_something_is_dropped_is_an_error(small, monkeypatch):
    make_logger = plan_builder.make_logger

    def warned(library):
        logger = make_logger(library)
        logger.warnings.append("Unused Input: seqlen")
        return logger

    monkeypatch.setattr(plan_builder, "make_logger", warned)
    with pytest.raises(FirpError, match="does not build lower as it is . got Unused Input: seqlen"):
        build_engines(small, ONE_DEVICE)


def test_a_graph_that_the_parser_refuses_is_an_error(small):
    def change(graph):
        next(node for node in graph if node.op_type == "Sigmoid").op_type = "Unknown"

    with pytest.raises(FirpError, match="the library cannot read changed.onnx . got .*Unknown.*Plugin not found"):
        rewrite(small, change)()


def test_a_plan_without_text_lists_nothing(tmp_path):
    (tmp_path / "lower.plan").write_bytes(b"\x00" * 100)
    assert read_plan(tmp_path / "lower.plan") == []
