"""Which engines of a bundle may be loaded, and which are refused before anything is deserialized."""

import json
import shutil

import pytest
from support.cuda_double import CudaDouble
from support.tensorrt_double import TensorRTDouble, write_engines

from firp.runtime.backends.tensor_rt import TensorRTBackend
from firp.runtime.bundle.format import load_bundle, sha256_file
from firp.runtime.bundle.json_fields import write_json
from firp.runtime.bundle.limits import Limits
from firp.runtime.engine import Engine
from firp.runtime.errors import BundleError, FirpError


@pytest.fixture
def bundle(family_bundle, tmp_path):
    return shutil.copytree(family_bundle("llama")[1], tmp_path / "bundle")


def load(bundle, capability=(8, 9), backend="tensorrt-rtx"):
    cuda = CudaDouble(compute_capability=capability)
    return Engine(
        load_bundle(bundle, check_hashes=False), TensorRTBackend(backend, TensorRTDouble(cuda), cuda)
    )


def test_engines_that_do_not_match_are_refused_with_the_command_that_builds_them(
    bundle, family_bundle, tmp_path
):
    with pytest.raises(
        FirpError, match=r"has no tensorrt-rtx engines.*Fix: firp build .*bundle --backend tensorrt-rtx"
    ):
        load(bundle)
    folder = write_engines(load_bundle(bundle))
    with pytest.raises(FirpError, match=r"engines for another GPU.*8\.9.*12\.0.*firp build"):
        load(bundle, (12, 0))
    with pytest.raises(FirpError, match="has no tensorrt engines"):
        load(bundle, backend="tensorrt")
    plan = folder / "upper.plan"
    content = plan.read_bytes()
    plan.write_bytes(content[:-10])
    with pytest.raises(BundleError, match=r"damaged engine.*upper\.plan.*firp build.*--force"):
        load(bundle)
    plan.write_bytes(content[:-1] + b"]")
    with pytest.raises(BundleError, match="damaged engine.*another sha256"):
        load(bundle)
    plan.write_bytes(content)
    other = shutil.copytree(family_bundle("qwen3")[1], tmp_path / "other")
    shutil.copytree(bundle / "engines", other / "engines")
    with pytest.raises(BundleError, match=r"engines of another bundle.*lower\.prefix\.onnx"):
        load(other)
    shutil.move(folder, folder.with_name("tensorrt-rtx-1.6.0.1-sm89"))
    record = folder.with_name("tensorrt-rtx-1.6.0.1-sm89") / "engine.json"
    record.write_text(
        record.read_text().replace('"library_version": "1.7.1.116"', '"library_version": "1.6.0.1"')
    )
    with pytest.raises(FirpError, match=r"engines of another tensorrt-rtx version.*1\.6\.0\.1.*1\.7\.1\.116"):
        load(bundle)
    record.write_text("{}")
    with pytest.raises(BundleError, match=r"engines of another format.*version None"):
        load(bundle)


def test_an_engine_with_other_tensors_is_refused(bundle):
    folder = write_engines(load_bundle(bundle))
    lower, upper = (folder / f"{name}.plan" for name in ("lower", "upper"))
    upper.write_text(lower.read_text().replace("lower", "upper", 1))  # the lower graph under another name
    record = json.loads((folder / "engine.json").read_text())
    record["plans"]["upper"] = {"size": upper.stat().st_size, "sha256": sha256_file(upper)}
    write_json(folder / "engine.json", record)
    with pytest.raises(
        BundleError, match=r"upper\.plan' is not the graph its bundle declares.*inputs that differ"
    ):
        load(bundle)
    upper.write_text("not a plan")
    record["plans"]["upper"] = {"size": upper.stat().st_size, "sha256": sha256_file(upper)}
    write_json(folder / "engine.json", record)
    with pytest.raises(BundleError, match=r"tensorrt-rtx refuses the engine.*upper\.plan"):
        load(bundle)


def edit_record(folder, edit):
    record = json.loads((folder / "engine.json").read_text())
    edit(record)
    write_json(folder / "engine.json", record)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r["profiles"]["lower"][0]["shapes"]["input_ids"].pop(), "got 2 values, expected 3"),
        (
            lambda r: r["profiles"]["lower"][0]["shapes"]["input_ids"][1].append(1),
            "not one of the lower graph",
        ),
        (
            lambda r: r["profiles"]["lower"][0]["shapes"].update(zzz=[[1], [1], [1]]),
            "not one of the lower graph",
        ),
        (
            lambda r: r["profiles"].update(predictors=r["profiles"]["lower"]),
            "not one of the predictors graph",
        ),
        (lambda r: r["limits"].clear(), "bad limits"),
        (lambda r: r["limits"].update(max_batch=0), "bad limits"),
        (lambda r: r.update(format_version=7, more=1), "another format.*version 7"),
        (lambda r: r.pop("plans"), "missing key"),
    ],
)
def test_an_edited_record_gets_one_line_and_the_command_that_makes_another(bundle, edit, message):
    edit_record(write_engines(load_bundle(bundle)), edit)
    with pytest.raises(BundleError, match=message) as caught:
        load(bundle)
    assert "Fix: firp build" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_several_engines_the_ones_for_this_device_are_taken_and_bad_ones_passed_over(bundle):
    loaded = load_bundle(bundle)
    wide = write_engines(loaded, Limits(256, 1, 16))
    wide = wide.rename(wide.with_name("tensorrt-rtx-1.7.1.116-sm80-sm89"))
    edit_record(wide, lambda r: r.update(compute_capabilities=["8.0", "8.9"]))
    own = write_engines(loaded, Limits(256, 1, 64))
    for name in ("tensorrt-rtx-0.1-sm89", "tensorrt-rtx-9.9-sm89"):
        shutil.copytree(own, own.with_name(name))
        (own.with_name(name) / "engine.json").write_text("{")
    assert load(bundle).limits.max_rows == 64
    (own / "upper.plan").write_text("x")
    assert load(bundle).limits.max_rows == 16  # the wide ones are whole
