"""Messages through the engine: token ids, ends, tools, and what is refused."""

import json

import pytest
from support.chat_bundles import add_chat, small_chat_bundle
from transformers import AutoTokenizer

from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError, PromptError
from firp.runtime.sampling import SamplingParams

USER = {"role": "user", "content": "def add(a, b):"}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}>>> {% endif %}"
)


@pytest.fixture(scope="module")
def engine(demo_bundle, tmp_path_factory):
    target = tmp_path_factory.mktemp("chat") / "demo"
    tokens = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return Engine.load(add_chat(demo_bundle, target, TEMPLATE, **tokens))


def test_token_ids_are_those_of_apply_chat_template(engine):
    tokenizer = AutoTokenizer.from_pretrained(engine.bundle.path, local_files_only=True)
    messages = [{"role": "system", "content": "Be brief.\n"}, USER]
    for tools in (None, [{"name": "run", "parameters": {"é": 1}}]):
        expected = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, return_dict=False
        )
        assert list(engine.request(messages, tools=tools).prompt) == expected
    assert engine.encode(messages)[0] == 0
    assert engine.encode(messages)[1] != 0


def test_chat_streams_what_it_returns(engine):
    params = SamplingParams(20)
    whole = engine.chat([USER], params)
    chunks = list(engine.stream_chat([USER], params))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert whole.token_ids == engine.chat([USER], params, plain=True).token_ids
    assert whole.token_ids == engine.generate(engine.encode([USER]), params).token_ids


def test_the_tokenizer_s_end_of_sequence_ends_an_answer_but_no_plain_text(family_bundle, tmp_path):
    bundle = small_chat_bundle(family_bundle("llama")[1], tmp_path / "bundle")
    params = SamplingParams(30, temperature=1.3, seed=1)
    free = Engine.load(bundle).chat([USER], params)
    end = free.token_ids[0]
    assert len(free.token_ids) > 1
    config = json.loads((bundle / "tokenizer_config.json").read_text())
    character = Engine.load(bundle).tokenizer.id_to_token(end)
    config["chat_template"] = config["chat_template"].replace("eos_token", "'</s>'")
    other = add_chat(
        bundle, tmp_path / "other", config["chat_template"], bos_token="<s>", eos_token=character
    )
    engine = Engine.load(other)
    ended = engine.chat([USER], params)
    assert ended.token_ids == free.token_ids[: free.token_ids.index(end) + 1]
    assert ended.finish_reason == "stop"
    assert engine.generate(engine.encode([USER]), params).token_ids == free.token_ids


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([], "no messages"),
        ("hi", "bad messages"),
        ([USER, {"role": "wizard", "content": "x"}], "unknown role of message 2"),
        ([{"role": "user"}], "message 1 has no content"),
        ([{"role": "user", "content": "a" * 9000}], "prompt longer than the context"),
    ],
)
def test_messages_that_cannot_be_answered(engine, messages, line):
    with pytest.raises(PromptError, match=line):
        engine.stream_chat(messages)  # at once, not when the stream is consumed


def test_tools_go_with_messages(engine):
    with pytest.raises(FirpError, match="tools go with messages"):
        engine.stream("text", tools=[{}])


def test_messages_need_a_tokenizer(family_bundle, tmp_path):
    bundle = add_chat(family_bundle("llama")[1], tmp_path / "bundle")
    with pytest.raises(PromptError, match="the bundle has no tokenizer.*messages"):
        Engine.load(bundle).chat([USER])
