"""LangChain and LiteLLM against a running server, where they are installed: what each asks for, and
what it makes of answers and errors. The demo model answers, drafted.
"""

import json

import openai
import pytest
from support.fake_engine import FakeEngine
from support.http_server import serving
from support.tool_bundle import SCHEMA, TOOLS, add_tools

from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams
from firp.runtime.serving.app import build_app
from firp.runtime.serving.settings import ServerSettings

TEXT = "def add(a, b):"


@pytest.fixture(scope="module")
def engine(demo_bundle, tmp_path_factory):
    with Engine.load(add_tools(demo_bundle, tmp_path_factory.mktemp("frameworks"))) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def url(engine):
    with serving(build_app(engine, ServerSettings(("demo",), ("key",)))) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def expected(engine):
    return engine.chat([{"role": "user", "content": TEXT}], SamplingParams(24), plain=True)


@pytest.fixture
def busy():
    """An engine that is busy once, and its address."""
    engine = FakeEngine()
    engine.refusals = 1
    with serving(build_app(engine)) as address:
        yield engine, f"{address}/v1"


def check(answer):
    assert answer["order"] in ("up", "down")
    assert answer["sorted"] in (True, False)
    assert len(answer) == 2


def check_logprobs(found, expected):
    assert b"".join(bytes(one["bytes"]) for one in found).decode() == expected.text
    assert all(len(one["top_logprobs"]) == 2 and one["logprob"] <= 0 for one in found)


@pytest.fixture(scope="module")
def langchain(url):
    """What makes a model of LangChain."""
    module = pytest.importorskip("langchain_openai")

    def make(**options):
        asked = {"base_url": url, "api_key": "key", "model": "demo", "temperature": 0, "max_tokens": 24}
        return module.ChatOpenAI(**{**asked, "max_retries": 0, **options})

    return make


def test_langchain_answers_and_streams(langchain, expected):
    model = langchain()
    whole = model.invoke([("user", TEXT)])
    assert whole.content == expected.text
    assert whole.usage_metadata["output_tokens"] == 24
    pieces = list(model.stream([("user", TEXT)], stream_usage=True))
    assert "".join(piece.content for piece in pieces) == expected.text
    assert sum((piece.usage_metadata or {}).get("output_tokens", 0) for piece in pieces) == 24
    stop = expected.text[10:14]
    assert model.invoke(TEXT, stop=[stop]).content == expected.text[: expected.text.index(stop)]
    logged = model.bind(logprobs=True, top_logprobs=2).invoke(TEXT)
    check_logprobs(logged.response_metadata["logprobs"]["content"], expected)


def test_langchain_structures_and_calls(langchain):
    model = langchain(max_tokens=90)
    check(model.with_structured_output({**SCHEMA, "title": "Order"}, method="json_schema").invoke("sort"))
    bound = model.bind_tools(TOOLS, tool_choice="sort", parallel_tool_calls=False)
    check(bound.invoke("sort").tool_calls[0]["args"])
    first, *others = bound.stream("sort")
    for piece in others:
        first += piece
    check(first.tool_calls[0]["args"])


def test_langchain_tells_errors_and_tries_again(langchain, busy):
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        langchain(max_tokens=10**6).invoke(TEXT)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        langchain(model="gpt").invoke(TEXT)
    with pytest.raises(openai.AuthenticationError):
        langchain(api_key="other").invoke(TEXT)
    engine, address = busy
    asked = {"base_url": address, "model": "support", "max_tokens": 5}
    with pytest.raises(openai.RateLimitError):
        langchain(**asked).invoke(TEXT)
    engine.refusals = 1
    assert langchain(**asked, max_retries=1).invoke(TEXT).content == "Hello."


@pytest.fixture
def litellm(url, monkeypatch):
    """LiteLLM, and how it is asked."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    module = pytest.importorskip("litellm")
    messages = [{"role": "user", "content": TEXT}]
    asked = {"model": "openai/demo", "api_base": url, "api_key": "key", "messages": messages}
    return module, {**asked, "temperature": 0, "max_tokens": 24, "max_retries": 0}


def test_litellm_answers_and_streams(litellm, expected):
    module, asked = litellm
    assert module.completion(**asked).choices[0].message.content == expected.text
    *pieces, last = module.completion(**asked, stream=True, stream_options={"include_usage": True})
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected.text
    assert last.usage.completion_tokens == 24
    stop = expected.text[10:14]
    found = module.completion(**asked, stop=stop).choices[0]
    assert found.message.content == expected.text[: expected.text.index(stop)]
    assert found.finish_reason == "stop"
    logged = module.completion(**asked, logprobs=True, top_logprobs=2).choices[0].logprobs
    check_logprobs(logged.model_dump()["content"], expected)


def test_litellm_structures_and_calls(litellm):
    module, asked = litellm
    asked = {**asked, "max_tokens": 90}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    check(json.loads(module.completion(**asked, response_format=form).choices[0].message.content))
    calling = {**asked, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    whole = module.stream_chunk_builder(list(module.completion(**calling, stream=True)))
    (call,) = whole.choices[0].message.tool_calls
    assert call.function.name == "sort"
    check(json.loads(call.function.arguments))


def test_litellm_tells_errors_and_tries_again(litellm, busy):
    module, asked = litellm
    for wrong, error in (
        ({"max_tokens": 10**6}, module.ContextWindowExceededError),
        ({"api_key": "other"}, module.AuthenticationError),
        ({"model": "openai/gpt"}, module.NotFoundError),
        ({"top_p": 7}, module.BadRequestError),
    ):
        with pytest.raises(error):
            module.completion(**{**asked, **wrong})
    engine, address = busy
    asked |= {"model": "openai/support", "api_base": address, "max_tokens": 5}
    with pytest.raises(module.RateLimitError):
        module.completion(**asked)
    engine.refusals = 1
    again = module.completion(**{**asked, "max_retries": 1})
    assert again.choices[0].message.content == "Hello."
