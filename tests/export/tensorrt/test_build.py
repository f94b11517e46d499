"""Engines built on the CPU with TensorRT-RTX: what their plans launch, what engine.json says, and
how a build fails.
"""

import sys
import threading
from types import SimpleNamespace

import pytest
from support.small_models import make_model

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.tensorrt import build as engine
from firp.export.tensorrt import plan as plan_builder
from firp.export.tensorrt.build import (
    BuildOptions,
    build_engines,
    check_limits,
    choose_capabilities,
    require_build_memory,
)
from firp.runtime.backends.nvidia_library import load_library
from firp.runtime.bundle.engine_record import find_engine_folder
from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.limits import Limits
from firp.runtime.errors import FirpError
from firp.runtime.passes.pass_plan import PREFILL_ROWS

RTX = "tensorrt-rtx"
ONE_DEVICE = BuildOptions(RTX, compute_capabilities=("8.9",))


def test_engine_json_says_what_was_built(demo16):
    bundle, record = demo16
    engines = find_engine_folder(load_bundle(bundle), RTX, load_library(RTX).__version__, "8.9")
    assert engines.record == record
    assert engines.path.name == f"{RTX}-{record.library_version}-sm89"
    assert sorted(path.name for path in engines.path.iterdir()) == [
        "engine.json",
        "lower.plan",
        "predictors.plan",
        "upper.plan",
    ]
    # the model's own context is smaller than the default limit
    assert record.limits == Limits(max_context=2048)
    decode, prefill = record.profiles["upper"]
    assert (decode.name, prefill.name) == ("decode", "prefill")
    assert decode.shapes["hidden_states"] == ((1, 1, 256), (1, 16, 256), (1, 64, 256))
    assert decode.shapes["attention_bias"][2] == (1, 1, 64, 2048 + 64)
    assert decode.shapes["past_key.6"][0] == (
        0,
        1,
        2,
        64,
    )
    assert prefill.shapes["hidden_states"][2] == (1, PREFILL_ROWS + 3, 256)
    assert prefill.shapes["logits_rows"][2] == (1, 1)
    assert prefill.shapes["draft_rows"][2] == (1, 3)
    assert record.profiles["lower"][1].shapes["input_ids"][2] == (1, PREFILL_ROWS)
    assert record.peak_bytes > 0
    assert all(seconds > 0 for seconds in record.build_seconds.values())


def test_engines_are_replaced_only_by_force(half_bundle):
    first = build_engines(half_bundle, ONE_DEVICE)
    with pytest.raises(FirpError, match=r"built already.*sm89.*Fix: replace them with --force"):
        build_engines(half_bundle, ONE_DEVICE)
    again = build_engines(half_bundle, BuildOptions(RTX, Limits(max_rows=8), ("8.9",), force=True))
    engines = find_engine_folder(load_bundle(half_bundle), RTX, first.library_version, "8.9")
    assert engines.record == again
    assert again.limits.max_rows == 8
    options = BuildOptions(RTX, Limits(max_rows=8), ("8.9",), force=True)
    (engines.path / "notes.txt").write_text("keep me")
    with pytest.raises(FirpError, match="holds other files.*notes.txt"):
        build_engines(half_bundle, options)
    (engines.path / "notes.txt").unlink()
    (engines.path / "engine.json").unlink()  # without it the plans are of no use
    with pytest.raises(FirpError, match="--force"):
        build_engines(half_bundle, ONE_DEVICE)
    build_engines(half_bundle, options)


@pytest.mark.parametrize("stop_at", ["lower", "upper"])
def test_a_cancelled_build_leaves_nothing(stop_at, half_bundle):
    cancel, seen = threading.Event(), []

    def progress(stage, done, total):
        seen.append((stage, done / total))
        if stage == f"building {stop_at}" and done > 0 and len(seen) > 3:
            cancel.set()

    before = sorted(path.name for path in half_bundle.iterdir())
    with pytest.raises(FirpError, match=f"interrupted.*{stop_at}"):
        build_engines(half_bundle, ONE_DEVICE, progress, cancel)
    assert sorted(path.name for path in half_bundle.iterdir()) == before
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] <= 1


def test_a_float32_bundle_is_refused(demo_bundle):
    with pytest.raises(FirpError, match="float32.*Fix: export with --dtype float16"):
        build_engines(demo_bundle, ONE_DEVICE)


def test_no_library_or_another_version(monkeypatch, half_bundle):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(FirpError, match=r"not installed.*Fix: pip install 'firp\[tensorrt-rtx\]'"):
        build_engines(half_bundle, ONE_DEVICE)
    for backend, module, version in (
        ("tensorrt", "tensorrt", "10.14.1"),
        ("tensorrt", "tensorrt", "12.0.0"),
        (RTX, "tensorrt_rtx", "2.0.0.1"),
    ):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(__version__=version))
        with pytest.raises(
            FirpError, match=f"unsupported {backend} version . got {version}.*Fix: pip install"
        ):
            build_engines(half_bundle, BuildOptions(backend))


@pytest.mark.parametrize(
    "limits", [Limits(max_rows=3), Limits(max_rows=2000), Limits(max_batch=0), Limits(max_context=0)]
)
def test_limits_out_of_range(limits, half_bundle):
    with pytest.raises(FirpError, match=r"--max-(rows|batch|context) out of range"):
        check_limits(limits, load_bundle(half_bundle).manifest)


def test_too_little_memory_or_disk_is_refused_with_the_sum(half_bundle, monkeypatch):
    manifest = load_bundle(half_bundle).manifest
    with pytest.raises(
        FirpError,
        match=r"to build lower.*0.25 GiB free.*4.01 GiB = weights 3.70 \+ kernels 0.03 \+ library 0.28",
    ):
        require_build_memory(manifest, {"lower": 2**30, "predictors": 10**6, "upper": 2**29}, 2**28)
    require_build_memory(manifest, {"lower": 2**30, "upper": 2**29}, 5 * 2**30)
    monkeypatch.setattr(engine.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(FirpError, match="not enough disk space for engines"):
        build_engines(half_bundle, ONE_DEVICE)
    assert not (half_bundle / "engines").exists()


def test_devices():
    rtx, tensorrt = load_library(RTX), SimpleNamespace()
    assert choose_capabilities(rtx, BuildOptions(RTX), None) == ("8.0", "8.6", "8.9", "12.0", "12.1")
    assert choose_capabilities(rtx, BuildOptions(RTX), "7.5") == ("7.5",)
    assert choose_capabilities(rtx, BuildOptions(RTX, compute_capabilities=("12.0", "8.9")), None) == (
        "8.9",
        "12.0",
    )
    assert choose_capabilities(tensorrt, BuildOptions("tensorrt"), "9.0") == ("9.0",)
    with pytest.raises(
        FirpError, match=r"got compute capability 9.0, expected 7.5, 8.0.*Fix: use --backend tensorrt"
    ):
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
def test_tensorrt_takes_the_same_way(half_bundle, monkeypatch):
    """TensorRT-RTX under TensorRT's name, without what TensorRT lacks: plans are for the GPU that
    is here, and timings are kept.
    """
    rtx = load_library(RTX)
    names = {name: getattr(rtx, name) for name in dir(rtx) if name != "ComputeCapability"}
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(**{**names, "__version__": "10.15.1"}))
    monkeypatch.setattr(engine, "gpu_compute_capability", lambda: "9.0")
    record = build_engines(half_bundle, BuildOptions("tensorrt"))
    assert (record.backend, record.compute_capabilities) == ("tensorrt", ("9.0",))
    folder = find_engine_folder(load_bundle(half_bundle), "tensorrt", "10.15.1", "9.0").path
    assert folder.name == "tensorrt-10.15.1-sm90"
    assert (folder / "timing.cache").stat().st_size > 0
    kept, given = (folder / "timing.cache").read_bytes(), []
    create = rtx.IBuilderConfig.create_timing_cache
    monkeypatch.setattr(
        rtx.IBuilderConfig,
        "create_timing_cache",
        lambda config, timings: given.append(timings) or create(config, timings),
    )
    build_engines(half_bundle, BuildOptions("tensorrt", force=True))
    assert given == [kept] * 3


def test_a_warning_that_something_is_dropped_is_an_error(half_bundle, monkeypatch):
    make_logger = plan_builder.make_logger

    def warned(library):
        logger = make_logger(library)
        logger.warnings.append("Unused Input: seqlen")
        return logger

    monkeypatch.setattr(plan_builder, "make_logger", warned)
    with pytest.raises(FirpError, match="does not build lower as it is . got Unused Input: seqlen"):
        build_engines(half_bundle, ONE_DEVICE)
