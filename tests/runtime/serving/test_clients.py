"""OpenAI's client against a running server. The demo model answers, drafted."""

import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from support.fake_engine import FakeEngine
from support.http_server import serving
from support.tool_bundle import SCHEMA, TOOLS, add_tools

from firp.runtime.drafters.guard import Guard
from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams
from firp.runtime.serving.app import build_app
from firp.runtime.serving.settings import ServerSettings

MESSAGES = [{"role": "user", "content": "def add(a, b):"}]
ASKED = {"model": "demo", "messages": MESSAGES, "temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def engine(demo_bundle, tmp_path_factory):
    with Engine.load(add_tools(demo_bundle, tmp_path_factory.mktemp("clients"))) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def url(engine):
    with serving(build_app(engine, ServerSettings(("demo",), ("key",)))) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="key", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def expected(engine):
    return engine.chat(MESSAGES, SamplingParams(24), plain=True)


def test_chat_is_what_the_engine_says_plainly(client, expected):
    found = client.chat.completions.create(**ASKED)
    assert found.choices[0].message.content == expected.text
    assert found.choices[0].finish_reason == "length"
    assert found.usage.prompt_tokens == expected.prompt_tokens
    assert found.usage.completion_tokens == 24
    assert found.usage.completion_tokens_details.accepted_prediction_tokens > 0
    assert found._request_id.startswith("req-")


def test_a_stream_joins_to_the_same_text_and_ends_with_the_usage(client, expected, monkeypatch):
    monkeypatch.setattr(Guard, "drafts", True)  # whatever time drafts take here
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**ASKED, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected.text
    assert chunks[-1].usage.completion_tokens == 24
    assert len(chunks) < 24  # some chunks hold several tokens


def test_requests_that_come_together_get_what_each_gets_alone(client, engine):
    texts = [f"def {name}(x):" for name in ("add", "sort", "mean", "flip", "join", "sum", "max", "norm")]
    params = SamplingParams(16, temperature=0.8, seed=3)
    alone = [engine.chat([{"role": "user", "content": text}], params, plain=True).text for text in texts]

    def ask(text):
        messages = [{"role": "user", "content": text}]
        asked = {**ASKED, "messages": messages, "max_tokens": 16, "temperature": 0.8, "seed": 3}
        chunks = client.chat.completions.create(**asked, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(len(texts)) as clients:
        assert list(clients.map(ask, texts)) == alone


def test_stop_ends_before_a_text(client, expected):
    stop = expected.text[10:14]
    found = client.chat.completions.create(**ASKED, stop=stop)
    assert found.choices[0].message.content == expected.text[: expected.text.index(stop)]
    assert found.choices[0].finish_reason == "stop"


def test_samples_depend_on_the_seed_alone(client):
    asked = {**ASKED, "temperature": 1, "n": 3, "seed": 5}
    first, again = (client.chat.completions.create(**asked).choices for _ in range(2))
    texts = [choice.message.content for choice in first]
    assert texts == [choice.message.content for choice in again]
    assert len(set(texts)) == 3


def test_logprobs_are_of_every_token(client, expected):
    found = client.chat.completions.create(**ASKED, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert b"".join(bytes(one.bytes) for one in found).decode() == expected.text
    for one in found:
        assert len(one.top_logprobs) == 2
        assert one.logprob == one.top_logprobs[0].logprob <= 0  # greedy


def test_the_prompt_has_logprobs_too(client):
    asked = {"model": "demo", "prompt": "def add(a, b):", "max_tokens": 3, "temperature": 0}
    found = client.completions.create(**asked, echo=True, logprobs=2).choices[0]
    tokens = found.logprobs.tokens
    assert "".join(tokens) == found.text
    assert found.text.startswith("def add(a, b):")
    assert found.logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in found.logprobs.token_logprobs[1:])
    assert found.logprobs.text_offset == [len("".join(tokens[:i])) for i in range(len(tokens))]


def check(answer):
    assert answer["order"] in ("up", "down")
    assert answer["sorted"] in (True, False)
    assert len(answer) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_keeps_to_a_json_schema(stream, client):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    found = client.chat.completions.create(**{**ASKED, "max_tokens": 60}, response_format=form, stream=stream)
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in found)
    else:
        text = found.choices[0].message.content
    check(json.loads(text))


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "sort"}}])
def test_a_tool_is_called_where_it_must_be(choice, client):
    asked = {**ASKED, "max_tokens": 90, "tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    found = client.chat.completions.create(**asked).choices[0]
    assert found.finish_reason == "tool_calls"
    assert found.message.content is None
    (call,) = found.message.tool_calls
    assert call.function.name == "sort"
    check(json.loads(call.function.arguments))
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    first, *others = [one for delta in deltas for one in delta.tool_calls or ()]
    assert (first.index, first.type, first.function.name) == (0, "function", "sort")
    assert first.id
    assert len(others) > 2  # pieces of the arguments, as they came
    assert all((one.index, one.id, one.function.name) == (0, None, None) for one in others)
    assert "".join(one.function.arguments for one in (first, *others)) == call.function.arguments
    # and the model is told what came of it
    answer = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    turns = [*MESSAGES, found.message.to_dict(), answer]
    assert client.chat.completions.create(**{**ASKED, "messages": turns}).choices[0].message.content


def test_the_client_joins_a_streamed_call(client):
    asked = {
        **ASKED,
        "max_tokens": 90,
        "tools": TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    with client.chat.completions.stream(**asked) as stream:
        events = [event for event in stream if event.type.startswith("tool_calls.function.arguments")]
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert "".join(event.arguments_delta for event in events[:-1]) == call.function.arguments
    assert events[-1].type == "tool_calls.function.arguments.done"
    check(json.loads(call.function.arguments))


def test_errors_are_those_of_the_client(client, url):
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(**{**ASKED, "model": "gpt"})
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**ASKED, "max_tokens": 10**6})
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="top_p"):
        client.chat.completions.create(**ASKED, top_p=3)
    with pytest.raises(openai.BadRequestError) as caught:
        structured = {"structured_outputs": {"regex": "("}}
        client.chat.completions.create(**ASKED, extra_body=structured)
    assert caught.value.param == "structured_outputs.regex"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="other", max_retries=0).models.list()


def test_the_client_tries_again_where_the_engine_was_busy():
    engine = FakeEngine()
    engine.refusals = 1
    with serving(build_app(engine)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=1)
        asked = {"model": "support", "messages": MESSAGES, "max_tokens": 5}
        assert client.chat.completions.create(**asked).choices[0].message.content == "Hello."
    assert engine.refusals == 0
