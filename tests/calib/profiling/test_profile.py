"""A profile's numbers against what they are numbers of: weight files, ONNX graphs, the tables that
other commands read.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from firp.calib.calibrate.request import CalibrationRequest
from firp.calib.commands.profile import print_profile, write_profile
from firp.calib.profiling.polygraphy_script import onnxruntime_line, polygraphy_script
from firp.calib.profiling.profile import ProfileRequest, grid_of, profile_bundle
from firp.calib.profiling.step_split import TOTAL
from firp.calib.targets import peaks
from firp.calib.targets.cost import Point, dimensions
from firp.calib.targets.feeds import FeedMaker
from firp.calib.targets.layer_times import KINDS, head_nodes
from firp.calib.targets.onnx_runtime import OnnxTarget
from firp.calib.targets.open import open_target
from firp.cli import command_line
from firp.runtime.bundle.calibration import read_latency
from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.graph_spec import PREFIX
from firp.runtime.bundle.json_fields import to_json
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError

FIRP = [sys.executable, "-c", "from firp.cli import main; main()", "profile"]


@pytest.fixture(scope="module")
def small_peaks():
    """Peaks are measured on less, so that the tests take seconds; a mistake in their arithmetic
    would still show.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peaks, "COPY_BYTES", 2**24)
        patch.setattr(peaks, "GEMM_SIZE", 256)
        patch.setattr(peaks, "SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def bundle(family_bundle) -> Path:
    return family_bundle("llama_untied_biases")[1]


@pytest.fixture(scope="module")
def profile(bundle, small_peaks):
    return profile_bundle(
        ProfileRequest(bundle, rows=(1, 6), cached_tokens=(3, 40), batches=(1, 2), layer_rows=(1, 6))
    )


@pytest.mark.parametrize("family", ["llama_untied_biases", "mistral_window"])
def test_every_graph_accepts_the_feeds_of_two_sequences(family_bundle, family):
    loaded, point = load_bundle(family_bundle(family)[1]), Point(4, 20, 2)
    engine = Engine.load(loaded.path)
    target = open_target(loaded, "cpu")
    for name, spec in loaded.manifest.graphs.items():
        feed = FeedMaker(spec, loaded.manifest, 2, 30).feed(point)
        dims = dimensions(name, point, loaded.manifest)
        for tensor in spec.inputs:
            assert feed[tensor.name].shape == tensor.sizes(dims), tensor.name
            assert feed[tensor.name].dtype == tensor.dtype, tensor.name
        outputs = engine.sessions.graphs[name].native.run(None, feed)
        for tensor, found in zip(spec.outputs, outputs, strict=True):
            assert found.shape == tensor.sizes(dims), tensor.name
            assert np.isfinite(found).all(), tensor.name
        with target.timer(name) as pass_ms:
            assert 0 < pass_ms(feed) < 1e3
    manifest = loaded.manifest
    ((mask, window),) = manifest.model.masks(manifest.layers("lower")).items()
    bias = FeedMaker(manifest.graphs["lower"], manifest, 1, 20).feed(Point(4, 20, 1))[mask][0, 0]
    assert ((bias == 0).sum(1) == (window or np.arange(21, 25))).all()  # keys in view of each row


def test_the_grid_is_measured_whole(profile):
    points = [(p.graph, p.batch, p.cached_tokens, p.rows) for p in profile.passes]
    assert len(points) == len(set(points))
    assert set(points) == {
        (graph, batch, cached, rows)
        for graph in ("lower", "predictors", "upper")
        for batch in (1, 2)
        for cached in ((0,) if graph == "predictors" else (3, 40))
        for rows in (1, 6)
    }
    for timed in profile.passes:
        assert timed.low_ms > 0
        assert timed.low_ms <= timed.median_ms <= timed.high_ms
        assert timed.passes >= 4
        assert timed.roofline.share == max(timed.roofline.bandwidth_share, timed.roofline.arithmetic_share)
        assert timed.roofline.share > 0


def test_the_parts_of_a_step_sum_to_it(profile):
    assert [split.decoding for split in profile.steps] == ["plain", "drafted"]
    for split in profile.steps:
        *parts, total = split.parts
        assert {part.name for part in parts} == {
            "lower_ms",
            "predictors_ms",
            "upper_ms",
            "copies_ms",
            "python_ms",
        }
        assert total.name == TOTAL
        assert sum(part.middle_ms for part in parts) == pytest.approx(total.middle_ms)
        assert all(part.low_ms <= part.median_ms <= part.high_ms for part in split.parts)
        assert split.part("python_ms").low_ms > 0
        assert split.part("copies_ms").low_ms > 0
    plain, drafted = profile.steps
    assert plain.part("predictors_ms").high_ms == 0
    assert drafted.part("predictors_ms").median_ms > 0
    assert plain.commit_bytes_per_step == 0  # rows are written where they stay
    assert plain.tokens_per_step == 1.0


def test_kinds_sum_to_the_graph(profile, bundle):
    assert [(measured.graph, measured.rows) for measured in profile.layers] == [
        (graph, rows) for graph in ("lower", "predictors", "upper") for rows in (1, 6)
    ]
    for measured in profile.layers:
        kinds = {part.kind: part for part in measured.kinds}
        assert sum(part.ms for part in measured.kinds) == pytest.approx(measured.layers_ms)
        assert sum(part.share for part in measured.kinds) == pytest.approx(1.0)
        assert "other" not in kinds
        assert set(kinds) <= set(KINDS)
        assert measured.pass_ms is not None
        if measured.graph != "predictors":  # two layers each
            assert (kinds["attention"].layers, kinds["GEMM"].layers, kinds["rope"].layers) == (2, 8, 4)
        assert ("head" in kinds) == (measured.graph == "upper")
    operators = {name.split("_")[1] for name in head_nodes(bundle / "upper.onnx")}
    assert {"Gemm", "LogSoftmax", "TopK"} <= operators
    assert "RMSNormalization" not in operators


def test_the_folder_serves_calibration(profile, bundle, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    write_profile(tmp_path / "out", bundle, profile)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "profile.json",
        "polygraphy.sh",
        "latency.png",
        "steps.png",
        "layers.png",
        "roofline.png",
    }
    table = read_latency(tmp_path / "out" / "profile.json")
    assert table == profile.latency
    assert table.prediction_layer == 2
    assert table.rows[0] == 1
    assert table.predictors_ms > 0
    assert table.device == Engine.load(bundle).backend.device
    assert CalibrationRequest(bundle, tmp_path / "p", latency=table).latency == table
    before = (tmp_path / "out" / "profile.json").read_bytes()
    assert json.loads(before) == json.loads(json.dumps(to_json(profile)))
    print_profile(profile)
    shown = capsys.readouterr().out
    assert "copies" in shown
    assert "2 x 40" in shown
    assert "attention" in shown
    assert "…" not in shown


def test_polygraphy_runs_its_line(bundle, profile):
    manifest, point = load_bundle(bundle).manifest, Point(3, 5, 1)
    script = polygraphy_script(bundle, manifest, point, Point(8, 100, 1))
    assert subprocess.run(["sh", "-n"], input=script, text=True).returncode == 0
    assert "--trt-max-shapes hidden_states:[1,8,64] source_rows:[1,8]" in script.replace("'", "")
    assert (
        "--trt-min-shapes hidden_states:[1,1,64] position_ids:[1,1] attention_bias:[1,1,1,1]"
        in script.replace("'", "")
    )
    line = onnxruntime_line(manifest.graphs_for(PREFIX)["upper"], manifest, point)
    assert line in script
    polygraphy = f"{sys.executable} {Path(sys.executable).with_name('polygraphy')}"
    result = subprocess.run(
        ["sh", "-c", line.replace("polygraphy", polygraphy, 1)], cwd=bundle, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"Completed 50 iteration", result.stdout), result.stdout + result.stderr


def test_a_bundle_without_predictors_has_none_in_its_profile(family_bundle, small_peaks, tmp_path):
    from firp.export.bundle.writer import ExportOptions, export_bundle

    export_bundle(ExportOptions(family_bundle("qwen2")[0], tmp_path / "bundle"))
    plain = profile_bundle(ProfileRequest(tmp_path / "bundle", rows=(2,), cached_tokens=(8,)))
    assert {timed.graph for timed in plain.passes} == {"lower", "upper"}
    assert len(plain.steps) == 1
    assert plain.latency.predictors_ms == 0
    (tmp_path / "out").mkdir()
    write_profile(tmp_path / "out", tmp_path / "bundle", plain)
    assert "predictors" not in (tmp_path / "out" / "polygraphy.sh").read_text()


def test_defaults_are_cut_to_the_context():
    request = ProfileRequest(Path("x"))
    points, layer_rows = grid_of(request, 256)
    rows = (1, 2, 4, 8, 16, 32, 64)
    assert points == [Point(count, cached, 1) for count in rows for cached in (128, 192)]
    assert layer_rows == (1, 16)
    points, _ = grid_of(request, 40)
    assert max(p.rows for p in points) == 32
    assert {p.cached_tokens for p in points} == {8}
    assert {p.rows for p in grid_of(ProfileRequest(Path("x"), cached_tokens=(250,)), 256)[0]} == {1, 2, 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": (4, 0)}, "bad --rows | got 0, expected at least 1"),
        ({"cached_tokens": (-1,)}, "bad --cached | got -1"),
        ({"batches": (0,)}, "bad --batch | got 0"),
        ({"layer_rows": (0,)}, "bad --layer-rows"),
        (
            {"rows": (8,), "cached_tokens": (249,)},
            "got 8 rows after 249 cached tokens, expected at most 256 together",
        ),
        ({"rows": (300,)}, "beyond the model's context"),
        ({"cached_tokens": (256,)}, "beyond the model's context"),
        ({"backend": "tpu"}, "unknown backend | got 'tpu'"),
        ({"batches": (10**8,)}, "not enough memory for the grid"),
        ({"backend": "cuda"}, "this ONNX Runtime has no CUDA"),
    ],
)
def test_mistakes_get_one_line(bundle, options, message):
    with pytest.raises(FirpError) as error:
        profile_bundle(ProfileRequest(bundle, **options))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_tensorrt_needs_library_gpu_and_engines(bundle, backend):
    result = subprocess.run([*FIRP, bundle, "--backend", backend], capture_output=True, text=True)
    missing = "is not installed|no usable CUDA device|the bundle has no"
    assert result.returncode == 1, result.stderr
    assert re.fullmatch(f"error: .*({missing}).*\n", result.stderr), result.stderr


def test_a_backend_that_cannot_tell_layers_apart(bundle, small_peaks, tmp_path, monkeypatch):
    monkeypatch.setattr(OnnxTarget, "layer_times", lambda self, *_: [])
    few = profile_bundle(ProfileRequest(bundle, rows=(1,), cached_tokens=(4,), batches=(2,)))
    assert few.layers == ()
    assert len(few.steps) == 2
    (tmp_path / "out").mkdir()
    write_profile(tmp_path / "out", bundle, few)
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".sh", ".png"}
    assert (tmp_path / "out" / "steps.png").exists()
    assert not (tmp_path / "out" / "layers.png").exists()
    print_profile(few)


def test_the_command(bundle, small_peaks, tmp_path, capsys):
    arguments = [
        "profile",
        str(bundle),
        "-o",
        str(tmp_path / "out"),
        "--rows",
        "1",
        "2",
        "--cached",
        "4",
        "--layer-rows",
        "2",
    ]
    command = command_line()
    command.main([*arguments, "--json"], standalone_mode=False)
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((tmp_path / "out" / "profile.json").read_text())
    assert shown["peaks"]["gflop_per_s"] > 1
    assert shown["latency"]["rows"][:2] == [1, 2]
    with pytest.raises(FirpError, match="output exists"):
        command.main(arguments, standalone_mode=False)
    with pytest.raises(click.UsageError, match="'tpu' is not one of"):
        command.main(["profile", str(bundle), "--backend", "tpu"], standalone_mode=False)


def test_without_polygraphy_it_says_what_to_install(bundle):
    hidden = "import sys; sys.modules['polygraphy'] = None; from firp.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", hidden, "profile", bundle], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "profiling needs polygraphy | got not installed. Fix: pip install 'firp[profile]'" in result.stderr


def test_bfloat16_is_refused_on_the_cpu(family_bundle, tmp_path):
    from firp.export.bundle.writer import ExportOptions, export_bundle

    export_bundle(ExportOptions(family_bundle("qwen2")[0], tmp_path / "bundle", dtype="bfloat16"))
    with pytest.raises(FirpError, match="no CPU kernels for bfloat16"):
        profile_bundle(ProfileRequest(tmp_path / "bundle"))
