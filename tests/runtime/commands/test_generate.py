"""The generate command: what picks obey, and what the text must be."""

import json

import pytest
from click.testing import CliRunner

from firp.runtime.commands.generate import generate
from firp.runtime.errors import FirpError
from firp.runtime.sampling import SamplingParams

PROMPT = "def add(a, b):"
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": [40, 42]}},
    "required": ["answer"],
    "additionalProperties": False,
}


@pytest.fixture
def run(demo_bundle):
    """The command's JSON object, in this process."""

    def call(*arguments):
        line = [str(demo_bundle), "--prompt", PROMPT, "--json", *map(str, arguments)]
        result = CliRunner().invoke(generate, line, catch_exceptions=False, standalone_mode=False)
        return json.loads(result.stdout.splitlines()[-1])

    return call


def test_options_are_those_of_the_interface(run, demo_engine):
    fields = {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2, "min_p": 0.1}
    flags = [part for name, value in fields.items() for part in (f"--{name.replace('_', '-')}", value)]
    found = run(*flags, "--temperature", 0.8, "--seed", 4, "--max-new-tokens", 9, "--logprobs", 2)
    expected = demo_engine.generate(PROMPT, SamplingParams(9, 0.8, seed=4, logprobs=2, **fields))
    assert found["token_ids"] == expected.token_ids
    assert [each["token_id"] for each in found["logprobs"]] == expected.token_ids
    assert {len(each["top"]) for each in found["logprobs"]} == {2}
    assert found["logprobs"][0]["logprob"] == pytest.approx(expected.logprobs[0].logprob, abs=1e-4)


def test_tokens_are_named_by_their_ids(run, demo_engine):
    first, second, *_ = demo_engine.generate(PROMPT, SamplingParams(9)).token_ids
    fields = {"banned_token_ids": (first, 5), "stop_token_ids": (second,), "min_tokens": 3}
    expected = demo_engine.generate(PROMPT, SamplingParams(9, logit_bias={7: 4, 8: -2.5}, **fields)).token_ids
    bias = ["--logit-bias", "7=4", "8=-2.5"]
    banned = ["--banned-token-ids", first, 5, "--stop-token-ids", second, "--min-tokens", 3]
    assert run(*bias, *banned, "--max-new-tokens", 9)["token_ids"] == expected
    assert set(run("--allowed-token-ids", 7, 8, "--max-new-tokens", 5)["token_ids"]) <= {7, 8}


def test_answers_to_a_prompt_differ_in_their_seeds(demo_bundle, demo_engine):
    line = [str(demo_bundle), "--prompt", PROMPT, "--json", "-n", "3", "--temperature", "1", "--seed", "4"]
    result = CliRunner().invoke(
        generate, [*line, "--max-new-tokens", "8"], catch_exceptions=False, standalone_mode=False
    )
    found = [json.loads(row)["token_ids"] for row in result.stdout.splitlines()]
    params = SamplingParams(8, 1.0, seed=4)
    expected = [one.token_ids for one in demo_engine.generate_samples(PROMPT, params, 3)]
    assert found == expected
    assert len(set(map(tuple, found))) == 3


@pytest.mark.parametrize("bias", ["7", "x=1", "7=1=2"])
def test_a_bias_that_is_none_is_one_line(bias, run):
    with pytest.raises(FirpError, match="bad --logit-bias . got .*, expected ID=BIAS"):
        run("--logit-bias", bias)


def test_the_text_is_what_was_asked_for(run, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "list.lark").write_text('start: "<" /[a-c]/ ">"')
    found = run("--json-schema", tmp_path / "schema.json", "--max-new-tokens", 60, "--repetition-penalty", 2)
    assert json.loads(found["text"])["answer"] in (40, 42)
    assert found["finish_reason"] == "stop"
    assert run("--grammar", tmp_path / "list.lark")["text"] in ("<a>", "<b>", "<c>")
    assert run("--regex", "[0-9]{4}")["text"].isdigit()
    assert run("--choice", "yes", "no")["text"] in ("yes", "no")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json-schema", "absent.json"], "cannot read the JSON schema.*absent.json"),
        (["--grammar", "absent.lark"], "cannot read the grammar"),
        (["--regex", "(a"], "grammar of regex does not compile"),
        (["--regex", "a", "--choice", "b"], "bad structured output.*regex, choice"),
        (["--min-p", 2], "bad min_p.*0 to 1"),
        (["--logprobs", 21], "bad logprobs.*0 to 20"),
    ],
)
def test_mistakes_are_one_line(arguments, message, run):
    with pytest.raises(FirpError, match=message):
        run(*arguments)


def test_logprobs_are_for_programs(demo_bundle):
    result = CliRunner().invoke(generate, [str(demo_bundle), "--prompt", "x", "--logprobs", "1"])
    assert result.exit_code == 2
    assert "--logprobs goes with --json" in result.output


def test_prompts_of_a_file_decode_together_and_come_in_their_order(demo_bundle, demo_engine, tmp_path):
    texts = [f"def add_{number}(a, b):" for number in range(5)]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text, "id": text}) + "\n" for text in texts))
    line = [str(demo_bundle), "--prompts", str(file), "--json", "--stats", "--max-new-tokens", "12"]
    result = CliRunner().invoke(generate, line, catch_exceptions=False, standalone_mode=False)
    found = [json.loads(row) for row in result.stdout.splitlines()]
    assert [row["id"] for row in found] == texts
    for row, text in zip(found, texts, strict=True):
        assert row["token_ids"] == demo_engine.generate(text, SamplingParams(12)).token_ids
    stats = json.loads(result.stderr.splitlines()[-1])
    assert stats["tokens"] == 60
    assert stats["ended"] == {"length": 5}
    assert stats["steps"] < 60  # together
