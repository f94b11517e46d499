"""The benchmarks' tables, and the GPU benchmark as far as a double of the device carries it."""

import json
import shutil
import sys

import click
import pytest
import torch
from click.testing import CliRunner
from support.chat_bundles import add_chat
from support.family_models import save_family
from support.tensorrt_double import device_engine
from transformers import AutoModelForCausalLM

from firp.calib.calibrate.request import CalibrationRequest
from firp.calib.calibrate.run import calibrate
from firp.calib.replay import evaluation
from firp.calib.training.options import TrainOptions
from firp.export.sources.open import open_checkpoint
from firp.runtime.bundle.calibration import read_latency
from firp.runtime.bundle.limits import Limits
from firp.runtime.chat.messages import check_messages
from firp.runtime.prompts import Prompt
from firp.runtime.sampling import SamplingParams


@pytest.fixture
def table(pytestconfig, monkeypatch, tmp_path):
    """The module, writing into a folder of the test's own."""
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "benchmarks")
    import table

    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    return table


@pytest.fixture
def gpu(table, monkeypatch):
    import gpu

    monkeypatch.setattr(gpu, "ROWS", (1, 4))
    monkeypatch.setattr(gpu, "CACHED", (30, 100))
    monkeypatch.setattr(gpu, "PASSES", 6)
    return gpu


def test_a_result_says_how_it_was_measured_and_what_was_found(table):
    result = table.Result("speed", "Speed of something")
    rows = result.table("By rows", "rows", "ms")
    rows.add(1, "0.5")
    rows.add(16, "a|b")
    result.note("It was busy.")
    path = result.write(table.Run("python benchmarks/speed.py", "abc1234", "2026-11-21", "a machine"))
    assert path.name == "speed.md"
    assert path.read_text() == (
        "# Speed of something\n\n`python benchmarks/speed.py`\n\n2026-11-21, commit abc1234; a machine.\n\n"
        "## By rows\n\n| rows | ms |\n| --- | --- |\n| 1 | 0.5 |\n| 16 | a\\|b |\n\nIt was busy.\n"
    )


def test_this_machine_and_commit_are_named(table, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/speed.py", "BUNDLE"])
    run = table.this_run()
    assert run.command == "python benchmarks/speed.py BUNDLE"
    assert "core" in run.machine
    assert run.date.startswith("20")


def test_a_row_of_other_columns_is_refused(table):
    rows = table.Result("speed", "Speed").table("By rows", "rows", "ms")
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        rows.add(1)


def test_a_family_is_compared_turn_by_turn_and_what_refuses_it_is_named(table):
    import family_table

    def turn(name, number, ms):
        return {
            "what": "turn",
            "name": name,
            "turn": number,
            "seconds": [0.5, 0.5 + ms / 1e3, 0.5 + 2 * ms / 1e3],
        }

    lines = [
        *(turn("firp float32", number, ms) for number, ms in enumerate((10, 20, 25))),
        *(turn("onnxruntime-genai float32", number, ms) for number, ms in enumerate((20, 20, 100))),
        {"what": "absent", "name": "firp int8", "why": "export int8 failed: experts"},
        {"what": "absent", "name": "onnxruntime-genai int8", "why": "no builder"},
        {"what": "bytes", "name": "firp float32", "bytes": 200_000_000},
        *(
            {"what": "bandwidth", "name": "read", "turn": at, "gb_per_s": speed}
            for at, speed in ((0, 15), (1, 25))
        ),
        {"what": "load", "name": "firp float32", "turn": 0, "versions": "onnxruntime 1"},
        {"what": "rows", "name": "firp float32", "ms": {"1": [10, 12, 11], "4": [22, 21, 99]}},
    ]
    result = table.Result("family_speed", "Families")
    (found,) = family_table.report(result, {"Qwen3-MoE": lines, "gpt-oss": []})
    speed, rows = result.tables
    assert speed.rows[0][3:] == (
        "50.0 (40.0, 100.0)",
        "50%",
        "onnxruntime-genai float32",
        "50.0 (10.0, 50.0)",
        "2.00 (1.00, 4.00)",
    )
    assert speed.rows[1][1:] == (
        "int8",
        "–",
        "refused: export int8 failed: experts",
        "–",
        "onnxruntime-genai int8",
        "refused: no builder",
        "–",
    )
    assert rows.rows == [("Qwen3-MoE", "firp float32", "11.0 (1.00)", "22.0 (2.00)")]
    assert found["gb_per_s"] == 20


def test_a_random_gpt_oss_has_small_experts_as_on_the_hub(table, tmp_path):
    from random_formats import make_small_experts

    sizes = {"hidden_size": 64, "intermediate_size": 32, "initializer_range": 0.02}
    model = save_family(tmp_path / "model", "gpt_oss", **sizes)
    before = AutoModelForCausalLM.from_pretrained(model).state_dict()
    make_small_experts(model)
    assert open_checkpoint(model).config.hidden_size == 64
    after = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    assert {name.rpartition("experts.")[2] for name in changed} == {"gate_up_proj", "down_proj"}
    for name in changed:
        assert after[name].shape == before[name].shape
        assert 0.8 < after[name].std() / before[name].std() < 1.3


def test_the_gpu_benchmark_measures_passes(gpu, table, family_bundle, tmp_path):
    engine = device_engine(shutil.copytree(family_bundle("llama")[1], tmp_path / "small"), Limits(200, 1, 32))
    result = table.Result("gpu", "GPU")
    gpu.latency(engine, 10.0, result, "small")
    (passes,) = result.tables
    assert "Double of a GPU" in passes.caption
    assert [row[:2] for row in passes.rows] == [(30, 1), (30, 4), (100, 1), (100, 4)]
    assert [bool(row[-1]) for row in passes.rows] == [True, False, True, False]  # bandwidth: of one row


def test_the_gpu_benchmark_compares_drafted_and_plain_decoding(gpu, table, demo_bundle, tmp_path):
    engine = device_engine(shutil.copytree(demo_bundle, tmp_path / "demo"), Limits(512, 1, 64))
    result = table.Result("gpu", "GPU")
    gpu.trained(engine, 1, result)
    speed, parity = result.tables
    assert float(speed.rows[0][0]) > 0
    assert speed.rows[0][-1]["replays"] > 0
    assert [row[2:4] for row in parity.rows] == [(0, 0), (0, 0)]  # near ties, other differences


@pytest.fixture
def trainings(table, pytestconfig, monkeypatch, tmp_path):
    """Arguments -> what the benchmark of calibrations says when it trains a little; its folder of
    reports is `runs`.
    """
    import calibration
    import training_runs

    monkeypatch.setattr(evaluation, "SEQUENCES", 2)
    monkeypatch.setattr(training_runs, "EVALUATED", 2)
    text = tmp_path / "text.txt"
    text.write_text((pytestconfig.rootpath / "runtime" / "engine.py").read_text())
    latency = {"device": "a machine", "prediction_layer": 6, "num_hidden_layers": 8, "contexts": [256]}
    latency |= {"rows": [1, 64], "lower_ms": [[1.3, 9.0]], "upper_ms": [[0.7, 5.5]], "predictors_ms": 0.1}
    latency |= {"plain_outside_ms": 0.1, "drafted_outside_ms": 0.3}
    (tmp_path / "latency.json").write_text(json.dumps({"latency": latency}))
    options = ["--window", 48, "--batch", 2, "--anchors", 16, "--correction-rank", 8]
    options += ["--latency", tmp_path / "latency.json", "--runs", tmp_path / "runs"]

    def run(*arguments):
        everything = [*options, *(("--data", text) if "--from-model" not in arguments else ()), *arguments]
        return CliRunner().invoke(calibration.main, [str(word) for word in everything])

    return run


def test_layers_that_share_rows_find_what_a_calibration_finds(trainings, pytestconfig, tmp_path):
    assert trainings("layers", "--steps", 3, "--layer", 3, "--layer", 6).exit_code == 0
    kept = json.loads((tmp_path / "runs" / "layer_6_steps_3.json").read_text())["found"]
    options = TrainOptions(
        minutes=None, steps=3, window=48, batch=2, anchors=16, correction_rank=8, prediction_layer=6
    )
    model = pytestconfig.rootpath / "tests" / "demo_model"
    latency = read_latency(tmp_path / "latency.json")
    calibrate(
        CalibrationRequest(
            model, tmp_path / "alone", (tmp_path / "text.txt",), options=options, latency=latency
        )
    )
    alone = json.loads((tmp_path / "alone" / "report.json").read_text())
    assert {**kept, "minutes": 0} == {**alone, "minutes": 0}


def test_what_was_trained_is_not_trained_again(trainings, table, tmp_path):
    assert trainings("--name", "small", "baselines", "--steps", 3).exit_code == 0
    report = tmp_path / "runs" / "layer_6_steps_3_baselines.json"
    kept = json.loads(report.read_text())
    kept["found"]["methods"][0]["accuracy"]["top1"] = [0.123, 0.045, 0.006]
    report.write_text(json.dumps(kept))
    result = trainings("--name", "small", "baselines", "--steps", 3, "budgets", "--steps", 3)
    assert result.exit_code == 0
    assert "| firp | 12.3 4.5 0.6 |" in (table.RESULTS / "calibration_baselines_small.md").read_text()
    budgets = (table.RESULTS / "calibration_budgets_small.md").read_text()
    assert f"| 3 steps | 3 | {kept['found']['minutes']:.1f} | 12.3 4.5 0.6 |" in budgets
    refused = trainings("--seed", 1, "baselines", "--steps", 3)
    assert "was made with other options or data; remove it" in refused.output


def test_own_text_and_predictors_that_were_trained_before_are_measured(
    trainings, table, pytestconfig, tmp_path
):
    prompts = {"train.jsonl": ("def add(a, b):", "class Point:"), "held_out.jsonl": ("import json", "for i")}
    for name, texts in prompts.items():
        (tmp_path / name).write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    predictors = pytestconfig.rootpath / "tests" / "demo_model" / "predictors"
    own = ("--from-model", tmp_path / "train.jsonl", "--held-out", tmp_path / "held_out.jsonl")
    result = trainings(*own, "--own-tokens", 800, "budgets", "--predictors", predictors)
    assert result.exit_code == 0
    trained = json.loads((predictors / "predictors.json").read_text())["training"]
    lines = (table.RESULTS / "calibration_budgets.md").read_text().splitlines()
    head, _, row = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert row[:2] == [f"predictors, {trained['minutes']:g} minutes", str(trained["steps"])]
    assert head[4:6] == ["greedy", "sampled"]
    assert "text" not in head  # held-out text is the model's own


def test_every_headline_is_backed_by_a_script_and_a_file(pytestconfig):
    folder = pytestconfig.rootpath / "benchmarks"
    lines = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    headlines = [row for row in cells if len(row) == 6 and row[0] not in ("claim", "---")]
    assert len(headlines) == 10
    for claim, _, _, _, script, file in headlines:
        assert (folder / script.strip("`").split()[0]).is_file(), claim
        assert (folder / file.partition("(")[2].rstrip(")")).is_file(), claim


@pytest.fixture
def peer_lines(table, tmp_path):
    """Lines of one run's settings, in a file of the test's own."""
    from peer_turns import Lines

    return lambda **settings: Lines(tmp_path / "lines.jsonl", settings)


@pytest.fixture
def firp_peer(table, demo_bundle):
    """firp as `peers.py` starts it, with the demo bundle."""
    from peer_install import WORKERS, Peer

    options = {"model": str(demo_bundle), "threads": 1}
    return Peer("firp demo", [sys.executable, str(WORKERS / "run_firp.py")], options)


def test_peers_are_asked_for_the_same_tokens_plainly_and_drafted(firp_peer, tmp_path):
    from peer_process import Worker

    with (tmp_path / "log").open("wb") as log, Worker(firp_peer, log) as worker:
        runs = [worker.ask(ids=[5, 6, 7], tokens=12, way=way) for way in worker.loaded["ways"]]
        score = worker.ask(score=[5, 6, 7, 8])
    assert worker.loaded["ways"] == ["plain", "drafted"]
    assert runs[0]["token_ids"] == runs[1]["token_ids"]
    assert [len(run["seconds"]) for run in runs] == [12, 12]
    assert score["nats"] > 0


def test_a_peer_that_does_not_load_says_why(firp_peer, tmp_path):
    from peer_install import Absent
    from peer_process import Worker

    broken = firp_peer._replace(options={"model": str(tmp_path), "threads": 1})
    with (tmp_path / "log").open("wb") as log, pytest.raises(Absent, match="firp demo: BundleError"):
        Worker(broken, log)


def test_what_a_stopped_comparison_measured_is_not_measured_again(peer_lines):
    peer_lines(tokens=8).add(what="load", name="a", turn=0, load_s=1.5)
    again = peer_lines(tokens=8)
    assert again.has(what="load", name="a", turn=0)
    assert not again.has(what="load", name="a", turn=1)
    assert again.all == [{"what": "load", "name": "a", "turn": 0, "load_s": 1.5}]


def test_lines_of_other_settings_are_not_mixed(peer_lines):
    peer_lines(tokens=8)
    with pytest.raises(click.ClickException, match="of another run"):
        peer_lines(tokens=9)


def test_peers_take_turns_and_are_compared(table, firp_peer, peer_lines, tmp_path):
    from peer_jobs import Jobs
    from peer_table import report
    from peer_turns import Comparison

    lines = peer_lines()
    jobs = Jobs([("code:1", [5, 6, 7])], list(range(5, 40)), [5, 6, 7], 8)
    jobs.contexts = lambda turn: []
    comparison = Comparison(lines, jobs, tmp_path / "log")
    comparison.admit("firp demo", lambda: firp_peer)
    comparison.run(2)
    lines.add(what="bandwidth", name="read", turn=0, gb_per_s=1.0)
    result = table.Result("peers", "Peers")
    report(result, lines.all, {"firp demo": 10**7})
    summary, gains, limits = result.tables
    assert limits.rows[0][:3] == ("firp demo", "10", "100")
    assert comparison.absent == {}
    assert [row[0] for row in summary.rows] == ["firp demo", "firp demo, drafted"]
    assert [line["turn"] for line in lines.all if line["what"] == "turn"] == [0, 0, 1, 1]
    ((name, together, *_),) = gains.rows
    plain, drafted = (
        sum(
            line["seconds"][-1] - line["seconds"][0]
            for line in lines.all
            if line["what"] == "turn" and line["name"] == way
        )
        for way in ("firp demo", "firp demo, drafted")
    )
    assert (name, together) == ("firp demo, drafted", f"{plain / drafted:.2f}")
    assert "onnxruntime" in result.notes[-1]


def test_requests_that_run_together_are_measured_and_told(table, demo_bundle, peer_lines, tmp_path):
    import load
    from load_table import report
    from peer_install import Workshop, firp

    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]]
    tokens = load.lengths(4, 8)
    assert sorted(tokens) == [4, 7, 9, 12]
    asked = load.Asked(prompts, tokens, (1, 3), [5, 6, 7, 8] * 50)
    peer = load.decoding_together(
        firp(Workshop(tmp_path, "x", 1), "demo", demo_bundle), "run_firp_together.py", batch=3, max_stall=3.0
    )
    missing = peer._replace(label="firp none", options={**peer.options, "model": str(tmp_path)})
    lines, absent = peer_lines(), {}
    with (tmp_path / "log").open("wb") as log:
        load.measure(lines, [peer, missing], asked, 1, absent, log)
        before = len(lines.all)
        load.measure(peer_lines(), [peer], asked, 1, absent, log)  # again: nothing is left to measure
    assert len(peer_lines().all) == before
    assert list(absent) == ["firp none"]
    result = table.Result("load", "Load")
    report(result, lines.all, tokens)
    together, arrival = result.tables
    assert "4 requests of 4 to 12 new tokens, median of 1 turns" in together.caption
    assert [row[4].partition("; ")[2] for row in together.rows][:2] == ["0%", "0%"]
    assert [row[:2] for row in together.rows] == [
        *(("firp demo", 1), ("firp demo", 3), ("firp demo, drafted", 1), ("firp demo, drafted", 3))
    ]
    assert {row[-1] for row in together.rows} == {"4 of 4"}
    assert arrival.rows[0][:3] == ("firp demo", 2, 200)


def test_what_leaves_the_text_alone_has_the_margin_of_the_pick_there(table, demo_bundle, monkeypatch):
    from peer_install import WORKERS

    monkeypatch.syspath_prepend(WORKERS)
    import run_firp_together

    firp = run_firp_together.Firp(demo_bundle, 1, 2, 3.0)
    with firp.engine as engine:
        ids = engine.generate([5, 6, 7], SamplingParams(8, ignore_eos=True), plain=True).token_ids
        assert firp.alone([5, 6, 7], ids) == {"position": None, "margin": None, "near_tie": True}
        found = firp.alone([5, 6, 7], [*ids[:3], ids[3] + 1, *ids[4:]])
    assert found["position"] == 3
    assert found["margin"] > 1e-4
    assert not found["near_tie"]


def test_an_output_that_differs_is_told_with_its_margin(table, demo_bundle, peer_lines, tmp_path):
    from load_table import report

    run = {
        "what": "together",
        "job": "4",
        "turn": 0,
        "seconds": [[0.1, 0.3]],
        "asked": [0.0],
        "versions": "x 1",
    }
    lines = peer_lines()
    lines.add(name="firp a", token_ids=[[1, 2]], **run)
    lines.add(name="firp a, drafted", token_ids=[[1, 3]], **run)
    found = {"position": 1, "margin": 2e-6, "near_tie": True}
    lines.add(what="difference", name="firp a, drafted", job="4:0", turn=0, **found)
    result = table.Result("load", "Load")
    report(result, lines.all, [2])
    (together,) = result.tables
    assert [row[-1] for row in together.rows] == ["1 of 1", "0 of 1"]
    told = (
        "firp a, drafted, 4 clients, turn 1, prompt 0: leaves its own text alone at token 1, margin 2.0e-06"
    )
    assert f"{told}: a near tie." in result.notes


def test_a_real_model_is_compared_by_kind_of_prompt(table, demo_bundle, tmp_path, monkeypatch):
    import real_model

    monkeypatch.setattr(real_model, "RESULTS", table.RESULTS)
    monkeypatch.setattr(real_model, "DONE", tmp_path / "lines.jsonl")
    bundle = add_chat(demo_bundle, tmp_path / "bundle", "{{ messages[0].content }}")
    prompt = Prompt("code:1", messages=check_messages([{"role": "user", "content": "def add(a, b):"}]))
    options = {"tokens": 8, "sampled_tokens": 4, "way": ["both"]}
    (line,) = real_model.decode(bundle, prompt, None, options)
    assert [(run["tokens"], run["differs"]) for run in line["runs"].values()] == [(8, None), (4, None)]
    parted = {"tokens": 8, "decoded": 7, "steps": 7, "differs": [3, 1e-7]}
    other = {"id": "chat:2", "prompt_tokens": 5, "runs": {"both, greedy": parted}, "generate": parted}
    real_model.DONE.write_text("")
    real_model.report([line, other], "real_model_small", None)
    text = (table.RESULTS / "real_model_small.md").read_text()
    assert "| plain, greedy = generate of transformers | 0 of 1 | 8 | 3: 1e-07 |" in text
    assert "| both, greedy = plain | 1 of 2 | 16 | 3: 1e-07 |" in text
    assert "| chat | 1.00 (1) | " in text
    assert real_model.until_end([5, 1, 6], [1]) == [5, 1]


def test_the_speed_of_calibration(table, pytestconfig, tmp_path):
    import calibration_speed

    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "def f(x):"}\n{"prompt": "class A:"}\n')
    model = pytestconfig.rootpath / "tests" / "demo_model"
    few = ["--tokens", 4, "--turns", 1, "--steps", 2, "--window", 48]
    ran = CliRunner().invoke(calibration_speed.main, list(map(str, [model, file, *few])))
    assert ran.exit_code == 0, ran.output
    lines = (table.RESULTS / "calibration_speed.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.count("|") > 3]
    assert sum(int(row[3].split()[0]) > 0 for row in rows if "together" in row[1]) == 4
    assert sum(int(row[3]) > 0 for row in rows if row[1] in ("computed", "kept from before")) == 2
