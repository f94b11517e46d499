"""The command line as a user runs it: results, JSON, messages, exit status, and that nothing is
damaged.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from support.command_line import FIRP, TALKATIVE, fails, firp, start, wait_for
from support.gguf_files import write_gguf
from support.small_models import make_model, make_predictors


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("cli") / "model", "llama")


def test_export_verifies_and_records_it(model, tmp_path):
    predictors = make_predictors(tmp_path / "predictors", model)
    result = firp("export", model, "-o", tmp_path / "bundle", "--predictors", predictors)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "verified: " in result.stderr
    shown = json.loads(firp("inspect", tmp_path / "bundle", "--json").stdout)
    assert shown["verification"]["passed"] is True
    assert {check["name"] for check in shown["verification"]["checks"]} >= {
        "tree logits, random tokens",
        "drafted = plain, chain",
    }
    assert shown["num_predictors"] == 3
    assert shown["prediction_layer"] == 2
    assert shown["tree"]["kind"] == "dynamic"
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "bundle").iterdir())
    assert "output exists" in fails("export", model, "-o", tmp_path / "bundle")
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "bundle").iterdir())
    assert firp("export", model, "-o", tmp_path / "bundle", "--force", "--no-verify").returncode == 0
    shown = json.loads(firp("inspect", tmp_path / "bundle", "--json").stdout)
    assert shown["verification"] is None
    assert shown["num_predictors"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "predictors"]


def test_a_quantized_export_says_what_it_costs_and_inspect_says_so_later(model, tmp_path):
    options = ("--quantize", "int8", "--quality-limit", 1000)
    result = firp("export", model, "-o", tmp_path / "bundle", *options)
    assert result.returncode == 0, result.stderr
    assert "verified: " in result.stderr
    shown = firp("inspect", tmp_path / "bundle").stdout
    for text in (" ".join(result.stderr.split()), " ".join(shown.split())):
        assert "int8: 17 weights as int8 rows" in text
        assert "held-out tokens: perplexity" in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--quantize-text", "text"), "go with --quantize"),
        (("--quality-limit", "3"), "go with --quantize"),
        (("--quantize", "int8", "--engine", "tensorrt"), "tensorrt does not run it"),
        (
            ("--quantize", "int5"),
            "bad --quantize | got 'int5', expected one of 'none', 'int8', 'int4'. Fix: see firp export",
        ),
    ],
)
def test_options_that_mean_nothing_together_are_refused(options, says, model, tmp_path):
    assert says in fails("export", model, "-o", tmp_path / "bundle", *options)
    assert not (tmp_path / "bundle").exists()


def test_export_without_predictors_says_so_and_decodes_plainly(model, tmp_path):
    result = firp("export", model, "-o", tmp_path / "bundle", "--no-verify")
    assert result.returncode == 0
    assert "decodes plainly" in result.stderr
    (tmp_path / "prompts.jsonl").write_text('{"input_ids": [5, 6, 7], "id": "a"}\n{"input_ids": [9]}\n')
    result = firp(
        "generate",
        tmp_path / "bundle",
        "--prompts",
        tmp_path / "prompts.jsonl",
        "--json",
        "--max-new-tokens",
        6,
    )
    assert "decoding plainly" in result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["id"] for line in lines] == ["a", "2"]
    assert set(lines[0]) == {
        "id",
        "prompt_tokens",
        "token_ids",
        "text",
        "finish_reason",
        "steps",
        "tokens_per_step",
    }
    assert lines[0]["text"] is None
    assert lines[0]["tokens_per_step"] == 1.0
    assert "no predictors" in fails("bench", tmp_path / "bundle", "--prompts", tmp_path / "prompts.jsonl")


def test_generate_plain_and_drafted_give_the_same(demo_bundle):
    arguments = ["generate", demo_bundle, "--prompt", "def add(a, b):", "--max-new-tokens", 24, "--json"]
    for sampling in ([], ["--temperature", 0.8, "--top-p", 0.9, "--top-k", 40, "--seed", 3]):
        drafted = json.loads(firp(*arguments, *sampling).stdout)
        plain = json.loads(firp(*arguments, *sampling, "--plain").stdout)
        assert drafted["token_ids"] == plain["token_ids"]
        assert drafted["text"] == plain["text"]
        assert plain["steps"] == 23
        assert plain["tokens_per_step"] == 1.0
    text = firp(*arguments[:-1])
    assert text.stdout == json.loads(firp(*arguments).stdout)["text"] + "\n"
    assert "24 tokens (length)" in text.stderr


def test_several_values_may_follow_one_flag(demo_bundle):
    together = firp(
        "generate", demo_bundle, "--prompt", "import os", "class A", "--max-new-tokens", 4, "--json"
    )
    apart = firp(
        "generate",
        "--prompt",
        "import os",
        "--prompt",
        "class A",
        "--max-new-tokens",
        4,
        "--json",
        demo_bundle,
    )
    assert together.stdout == apart.stdout
    assert len(together.stdout.splitlines()) == 2


def test_bench_json(demo_bundle, pytestconfig, tmp_path):
    demo = pytestconfig.rootpath / "tests" / "demo_model"
    prompts = (demo / "held_out_prompts.jsonl").read_text().splitlines()[:2]
    (tmp_path / "prompts.jsonl").write_text("\n".join(prompts))
    result = json.loads(
        firp(
            "bench", demo_bundle, "--prompts", tmp_path / "prompts.jsonl", "--max-new-tokens", 24, "--json"
        ).stdout
    )
    assert {"plain", "drafted", "speedup", "identical", "tokens", "backend", "device"} <= set(result)
    assert result["identical"] is True
    assert result["tokens"] == 46
    assert result["drafted"]["tokens_per_step"] > 1
    assert result["plain"]["tokens_per_step"] == 1


def test_verify_says_what_it_checked(model, tmp_path):
    bundle = tmp_path / "bundle"
    predictors = make_predictors(tmp_path / "predictors", model)
    assert firp("export", model, "-o", bundle, "--predictors", predictors, "--no-verify").returncode == 0
    report = json.loads(firp("verify", bundle, "--json").stdout)
    assert report["passed"]
    assert {"name", "passed", "value", "limit"} == set(report["checks"][0])
    result = firp("verify", bundle, "--model", model)
    assert result.returncode == 0
    assert "plain = generate" in result.stdout


def test_a_gguf_file_goes_through_export_and_verify(model, tmp_path):
    write_gguf(tmp_path / "model.gguf", model, "F16")
    result = firp("export", tmp_path / "model.gguf", "-o", tmp_path / "bundle")
    assert "verified: " in result.stderr
    assert firp("verify", tmp_path / "bundle", "--model", tmp_path / "model.gguf").returncode == 0
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(4))
    line = fails("export", tmp_path / "bad.gguf", "-o", tmp_path / "other")
    assert "unsupported GGUF version" in line
    assert not (tmp_path / "other").exists()


def test_verify_refuses_another_model(demo_bundle, model):
    assert "made from another model" in fails("verify", demo_bundle, "--model", model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["export", "absent", "-o", "OUT"],
            "no such model | got 'absent', expected a Hugging Face model directory, or a GGUF file",
        ),
        (
            ["export", "MODEL", "-o", "OUT", "--prediction-layer", "4"],
            "prediction layer out of range | got 4, expected 1 to 3",
        ),
        (["export", "MODEL", "-o", "OUT", "--predictors", "absent"], "not a predictor directory"),
        (["export", "MODEL", "-o", "MODEL"], "output exists and is something else"),
        (["generate", "absent", "--prompt", "x"], "no such bundle"),
        (["generate", "DEMO", "--prompt", ""], "empty prompt"),
        (["generate", "DEMO", "--prompt", "x " * 3000], "prompt longer than the context"),
        (["generate", "DEMO", "--prompt", "x", "--temperature", "-1"], "bad temperature"),
        (["generate", "DEMO", "--prompts", "absent.jsonl"], "cannot read prompt file"),
        (["bench", "DEMO", "--prompts", "absent.jsonl"], "cannot read prompt file"),
        (["inspect", "MODEL"], "not a bundle"),
        (["inspect", "x" * 5000], "File name too long"),
        (["generate", "DEMO", "--prompt", "a\udcffb"], "prompt is not Unicode text"),
        (["calibrate", "MODEL", "-o", "OUT", "--data", "x"], "the model has no tokenizer"),
    ],
)
def test_each_mistake_gets_one_line(arguments, message, model, demo_bundle, tmp_path):
    places = {"MODEL": model, "DEMO": demo_bundle, "OUT": tmp_path / "out"}
    before = sorted(path.name for path in model.parent.iterdir())
    assert message in fails(*(places.get(argument, argument) for argument in arguments), cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert sorted(path.name for path in model.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("generate x", "give either --prompt or --prompts. Fix: see firp generate --help"),
        (
            "generate x --prompt a --prompts b",
            "give either --prompt or --prompts. Fix: see firp generate --help",
        ),
        ("generate x --prompt", "option '--prompt' requires an argument. Fix: see firp --help"),
        ("generate x y", "got unexpected extra argument (y). Fix: see firp generate --help"),
        ("generate x --logit-bias 3", "bad --logit-bias | got 3, expected ID=BIAS, an integer and a number"),
        ("export", "missing argument 'MODEL'. Fix: see firp export --help"),
        ("export m --foce", "no such option | got --foce, expected --force. Fix: see firp export --help"),
        ("export m", "missing option '-o' / '--output'. Fix: see firp export --help"),
        ("fly", "no such command 'fly'. Fix: see firp --help"),
        ("serve b --port x", "bad --port | got 'x', expected integer. Fix: see firp serve --help"),
        ("serve b --port -1", "bad --port | got -1, expected 0<=x<=65535. Fix: see firp serve --help"),
        ("calibrate m -o p", "give --data, --from-model, or both. Fix: see firp calibrate --help"),
    ],
)
def test_wrong_usage_is_one_line_as_every_mistake(arguments, line, tmp_path):
    assert fails(*arguments.split(), cwd=tmp_path) == f"error: {line}"
    assert list(tmp_path.iterdir()) == []


def test_firp_alone_shows_what_there_is(tmp_path):
    alone = firp()
    assert (alone.returncode, alone.stderr) == (0, "")
    assert alone.stdout == firp("--help").stdout


@pytest.mark.parametrize("unbuffered", ["1", ""])
@pytest.mark.parametrize("arguments", [["inspect"], ["generate", "--prompt", "x", "--max-new-tokens", "3"]])
def test_a_full_disk_behind_stdout_gets_one_line(arguments, unbuffered, demo_bundle):
    with open("/dev/full", "w") as full:
        command = [*FIRP, arguments[0], str(demo_bundle), *arguments[1:]]
        result = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.endswith("error: No space left on device | got 'standard output'\n")


@pytest.mark.parametrize("unbuffered", ["1", ""])
@pytest.mark.parametrize("redirected", ["2>/dev/full", "2>&-", ">/dev/full 2>&1"])
@pytest.mark.parametrize(
    ("arguments", "status"), [("generate nowhere --prompt x", 1), ("families --none", 1), ("families", 0)]
)
def test_where_nothing_can_be_said_the_status_says_it(arguments, status, redirected, unbuffered):
    command = f"{' '.join(FIRP)} {arguments} {redirected}"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    result = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    assert result.returncode == (1 if redirected.startswith(">") else status)
    assert result.stderr == ""
    assert bool(result.stdout) == (result.returncode == 0)


def test_a_reader_that_leaves_is_no_error_message(demo_bundle):
    command = " ".join(FIRP) + f" generate {demo_bundle} --prompt x --max-new-tokens 300 --json | head -c 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Traceback" not in result.stderr


def test_output_survives_a_terminal_without_the_characters(demo_bundle):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    arguments = ["--prompt", "é", "--max-new-tokens", 60, "--temperature", 3, "--seed", 3]
    assert firp("generate", demo_bundle, *arguments, env=environment).returncode == 0


def test_malformed_prompts_are_found_before_anything_is_decoded(demo_bundle, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": 1}\n')
    assert "line 2" in fails("generate", demo_bundle, "--prompts", tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"input_ids": [99999]}\n')
    result = firp("generate", demo_bundle, "--prompts", tmp_path / "p.jsonl", "--json")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "token id out of range" in result.stderr


def test_a_full_disk_leaves_nothing(tmp_path, model):
    """The export meets a file size limit in the middle of the weights, as on a full disk."""
    import resource

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    line = fails("export", model, "-o", tmp_path / "out", "--no-verify", preexec_fn=limit)
    assert "cannot write" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_the_old_bundle_and_nothing_else(
    how, demo_bundle, tmp_path, pytestconfig
):
    bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")
    before = (bundle / "firp.json").read_bytes()
    demo = pytestconfig.rootpath / "tests" / "demo_model"
    process = start("export", demo, "-o", bundle, "--force", command=TALKATIVE)
    wait_for(process.stderr, "loading the Hugging Face model")
    assert list(tmp_path.glob(".bundle.partial-*/upper.onnx"))
    os.kill(process.pid, how)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1] == "error: interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (bundle / "firp.json").read_bytes() == before


def test_leftovers_of_a_killed_export_are_removed(model, tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    (tmp_path / f".out.partial-{process.stdout.strip()}").mkdir()
    assert firp("export", model, "-o", tmp_path / "out", "--no-verify").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_interrupted_generation_keeps_its_tokens(demo_bundle, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "def f():"}\n' * 20)
    sampling = ("--max-new-tokens", 400, "--temperature", 1)
    process = start("generate", demo_bundle, "--prompts", tmp_path / "prompts.jsonl", *sampling, "--json")
    first = json.loads(process.stdout.readline())
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"^error: interrupted \| got \d+ tokens of prompt \d+$", stderr, re.M), stderr
    *whole, last = [first, *map(json.loads, stdout.splitlines())]
    assert all(result["token_ids"] == first["token_ids"] for result in whole)
    assert last["token_ids"] == first["token_ids"][: len(last["token_ids"])]


def test_a_notebook_s_matplotlib_backend_and_a_closed_stdout_do_no_harm(demo_bundle, tmp_path):
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    small = "peaks.COPY_BYTES, peaks.GEMM_SIZE, peaks.SECONDS = 2**20, 64, 0.0"
    command = [sys.executable, "-c", "from firp.cli import main; main()"]
    profile = [
        *[
            sys.executable,
            "-c",
            f"from firp.calib.targets import peaks; {small}; from firp.cli import main; main()",
        ],
        "profile",
        demo_bundle,
        "--rows",
        "1",
        "--cached",
        "8",
        "--layer-rows",
        "1",
        "-o",
        tmp_path / "out",
    ]
    result = subprocess.run(profile, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "latency.png").is_file(), result.stderr
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command, "inspect", demo_bundle], capture_output=True, text=True
    )
    assert (closed.returncode, closed.stderr) == (0, "")
