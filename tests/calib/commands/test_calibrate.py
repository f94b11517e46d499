"""`firp calibrate`, and `firp export` that calibrates, as a user runs them."""

import json
import re
import signal

from support.command_line import TALKATIVE, fails, firp, start, wait_for


def test_export_trains_on_calibration_data(pytestconfig, tmp_path):
    """--calib-data is checked before minutes of training begin."""
    demo = pytestconfig.rootpath / "tests" / "demo_model"
    assert "too little calibration data" in fails(
        "export", demo, "-o", tmp_path / "b", "--calib-data", demo / "config.json"
    )
    assert "exclude each other" in fails(
        "export", demo, "-o", tmp_path / "b", "--calib-data", "x", "--predictors", "y"
    )
    assert "goes with --calib-data" in fails("export", demo, "-o", tmp_path / "b", "--minutes", 1)
    assert list(tmp_path.iterdir()) == []
    data = sorted((pytestconfig.rootpath / "runtime" / "loop").glob("*.py"))[:3]
    result = firp(
        "export",
        demo,
        "-o",
        tmp_path / "b",
        "--minutes",
        0.05,
        "--no-verify",
        "--no-tune",
        "--calib-data",
        *data,
    )
    assert result.returncode == 0, result.stderr
    shown = json.loads(firp("inspect", tmp_path / "b", "--json").stdout)
    assert shown["num_predictors"] == 3
    assert shown["source"]["predictors"]["training"]["files"] == len(data)


def test_calibrate_then_export(pytestconfig, tmp_path):
    demo, data = (
        pytestconfig.rootpath / "tests" / "demo_model",
        pytestconfig.rootpath / "tests" / "demo_model" / "train.py",
    )
    result = firp(
        "calibrate",
        demo,
        "-o",
        tmp_path / "p",
        "--data",
        data,
        "--steps",
        2,
        "--num-predictors",
        2,
        "--window",
        48,
    )
    assert result.returncode == 0, result.stderr
    assert "accuracy by offset" in result.stdout
    assert "tokens/step, greedy" in result.stdout
    assert "report.html" in result.stderr
    assert "expected speedup" in result.stderr
    result = firp("export", demo, "-o", tmp_path / "b", "--predictors", tmp_path / "p", "--no-verify")
    assert result.returncode == 0, result.stderr
    assert "chosen for this device: " in result.stderr
    assert "of demo_model in float32; that this float32 bundle writes and drafts alike" in result.stderr
    shown = json.loads(firp("inspect", tmp_path / "b", "--json").stdout)
    assert shown["num_predictors"] == 2
    assert len(shown["choices"]) == 1
    (tuned,) = shown["choices"].values()
    (tmp_path / "latency.json").write_text(json.dumps(tuned))  # and the table leads the next calibration
    arguments = [
        "calibrate",
        demo,
        "-o",
        tmp_path / "q",
        "--data",
        data,
        "--steps",
        2,
        "--latency",
        tmp_path / "latency.json",
    ]
    report = json.loads(firp(*arguments, "--json", "--num-predictors", 2, "--window", 48).stdout)
    assert report["choice"]["latency"] == tuned["latency"]


def test_an_interrupted_calibration_can_be_resumed(pytestconfig, tmp_path):
    demo, data = (
        pytestconfig.rootpath / "tests" / "demo_model",
        pytestconfig.rootpath / "tests" / "demo_model" / "train.py",
    )
    arguments = [
        "calibrate",
        demo,
        "-o",
        tmp_path / "p",
        "--data",
        data,
        "--window",
        48,
        "--batch",
        1,
        "--steps",
        3000,
    ]
    running = start(*arguments, "--seed", 1, command=TALKATIVE)
    wait_for(running.stderr, "training firp at layer 6: step 9,")
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=90)
    assert running.returncode == 1, errors
    assert "Traceback" not in errors, errors
    assert re.search(
        r"error: interrupted \| got '.*', what was finished is kept in .*p\.unfinished.*--resume", errors
    ), errors
    assert "add --resume to go on" in fails(*arguments, "--seed", 1)
    assert "different seed" in fails(*arguments, "--seed", 2, "--resume")
    assert [path.name for path in tmp_path.iterdir()] == ["p.unfinished"]
