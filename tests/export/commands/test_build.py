"""`firp build` and `firp export --engine` as a user runs them."""

import json
import signal

import pytest
from support.command_line import fails, firp, start
from support.small_models import make_model, make_predictors

from firp.runtime.backends.nvidia_library import gpu_compute_capability

RTX = ("--backend", "tensorrt-rtx", "--compute-capability", "8.9")


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "model", "llama")


@pytest.mark.skipif(
    gpu_compute_capability() == "9.0", reason="TensorRT-RTX has no code for the GPU that is here"
)
def test_export_with_engines_then_build_again(model, tmp_path):
    bundle, predictors = tmp_path / "bundle", make_predictors(tmp_path / "predictors", model)
    exported = firp(
        "export",
        model,
        "-o",
        bundle,
        "--predictors",
        predictors,
        "--dtype",
        "float16",
        "--no-verify",
        "--engine",
        "tensorrt-rtx",
    )
    assert exported.returncode == 0
    assert exported.stdout == ""
    assert "fused attentions 2/2" in exported.stderr
    assert "for compute capability " in exported.stderr
    built = firp("build", bundle, *RTX, "--max-rows", 8, "--json")
    assert built.returncode == 0, built.stderr
    shown = json.loads(built.stdout)
    assert shown["limits"] == {"max_context": 256, "max_batch": 1, "max_rows": 8}
    assert shown["launches"]["lower"][0]["attentions"] == 2
    assert shown["folder"].endswith("-sm89")
    assert "built for 256 tokens of context: the model has no more" in built.stderr
    assert "Warning" not in built.stderr
    assert "built already" in fails("build", bundle, *RTX)


def test_what_export_cannot_build_is_refused_before_anything_is_written(model, tmp_path):
    line = fails("export", model, "-o", tmp_path / "bundle", "--engine", "tensorrt-rtx")
    assert "float32" in line
    assert "Fix: export with --dtype float16" in line
    assert not (tmp_path / "bundle").exists()


def test_a_failed_build_after_an_export_leaves_the_bundle(model, tmp_path, monkeypatch, capsys):
    from firp.export.commands import build as command
    from firp.export.tensorrt import build as engine
    from firp.runtime.errors import FirpError

    bundle = tmp_path / "bundle"
    assert firp("export", model, "-o", bundle, "--dtype", "float16", "--no-verify").returncode == 0
    monkeypatch.setattr(engine, "available_bytes", lambda: 1)
    with pytest.raises(FirpError, match="not enough memory"):
        command.build_after_export(bundle, "tensorrt-rtx")
    assert "is whole and can be used; it only has no engines: firp build" in capsys.readouterr().err
    assert firp("inspect", bundle).returncode == 0
    assert not (bundle / "engines").exists()


def test_ctrl_c_leaves_nothing(tmp_path):
    from conftest import DEMO_MODEL

    bundle = tmp_path / "bundle"
    assert firp("export", DEMO_MODEL, "-o", bundle, "--dtype", "float16", "--no-verify").returncode == 0
    before = sorted(path.name for path in bundle.iterdir())
    process = start("build", bundle, *RTX)
    while process.poll() is None and not list(bundle.glob("engines/.*.partial-*")):
        pass
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.strip().startswith("error: interrupted")
    assert "Traceback" not in stderr
    assert sorted(path.name for path in bundle.iterdir()) == before
