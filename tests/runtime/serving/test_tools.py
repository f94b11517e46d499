"""Tools: calls whole and streamed, forced by grammars, and given back to the model."""

import httpx2
import pytest
from support.fake_engine import TOOL_TEMPLATE, FakeEngine
from support.http_server import MESSAGES, chat, error, events, serving

from firp.runtime.errors import FirpError
from firp.runtime.serving.app import build_app

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.fixture
def tool_client():
    engine = FakeEngine(template=TOOL_TEMPLATE)
    with serving(build_app(engine)) as url, httpx2.Client(base_url=url) as client:
        yield client, engine


def test_calls_of_tools_are_read_whole_and_streamed(tool_client):
    client, engine = tool_client
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "x"}}\n</tool_call>'
    engine.says = lambda params: ("Wait. ", call[:20], call[20:], call)
    message = chat(client, tools=TOOLS, max_tokens=9).json()["choices"][0]
    assert message["finish_reason"] == "tool_calls"
    assert message["message"]["content"] == "Wait. "
    calls = message["message"]["tool_calls"]
    assert [one["function"] for one in calls] == [{"name": "weather", "arguments": '{"city": "x"}'}] * 2
    assert len({one["id"] for one in calls}) == 2
    streamed = events(chat(client, tools=TOOLS, max_tokens=9, stream=True))
    deltas = [one["choices"][0]["delta"] for one in streamed]
    found = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [one["index"] for one in found] == [0, 0, 1, 1]
    heads, arguments = found[::2], found[1::2]
    assert [(one["type"], one["function"]) for one in heads] == [
        ("function", {"name": "weather", "arguments": ""})
    ] * 2
    assert all(set(one) == {"index", "function"} for one in arguments)
    assert [one["function"] for one in arguments] == [{"arguments": '{"city": "x"}'}] * 2
    assert streamed[-1]["choices"][0]["finish_reason"] == "tool_calls"
    one = chat(client, tools=TOOLS, max_tokens=9, parallel_tool_calls=False).json()["choices"][0]
    assert len(one["message"]["tool_calls"]) == 1
    none = chat(client, tools=TOOLS, max_tokens=9, tool_choice="none").json()["choices"][0]
    assert none["message"]["content"].startswith("Wait. <tool_call>")
    assert engine.submitted[-1].handle.params.structured is None


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_is_forced_by_a_grammar(choice, tool_client):
    client, engine = tool_client
    assert chat(client, tools=TOOLS, max_tokens=9, tool_choice=choice).status_code == 200
    structured = engine.submitted[-1].handle.params.structured
    assert "weather" in structured.lark
    assert "start: calls\n" in structured.lark
    wrong = {"type": "function", "function": {"name": "rain"}}
    assert error(chat(client, tools=TOOLS, tool_choice=wrong), 400)["param"] == "tool_choice"


STRANGE = {"type": "object", "properties": {"a": {"type": "strang"}}}


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_a_schema_of_a_tool_that_is_wrong_is_named_with_its_place(choice, tool_client):
    client, _ = tool_client
    wrong = {"type": "function", "function": {"name": "rain", "parameters": STRANGE}}
    found = error(chat(client, tools=[*TOOLS, wrong], tool_choice=choice, max_tokens=9), 400)
    assert found["param"] == "tools[1].function.parameters"
    assert "strang at $.properties.a.type" in found["message"]


def test_a_schema_of_an_answer_that_is_wrong_is_named_with_its_place(tool_client):
    client, _ = tool_client
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": STRANGE}}
    for more in ({}, {"tools": TOOLS}):
        found = error(chat(client, response_format=form, max_tokens=9, **more), 400)
        assert found["param"] == "response_format.json_schema.schema"
        assert "strang at $.properties.a.type" in found["message"]


@pytest.mark.parametrize("kind", ["lark", "json_schema", "regex", "choice"])
def test_a_grammar_that_does_not_compile_is_named_as_it_was_sent(kind, tool_client):
    client, engine = tool_client
    engine.busy = FirpError(f"the grammar of {kind} does not compile", got="call_0: generated")
    found = error(chat(client, tools=TOOLS, tool_choice="required", max_tokens=9), 400)
    assert found["param"] == "tools"
    assert "generated" not in found["message"]
    found = error(chat(client, structured_outputs={"regex": "a"}, max_tokens=9), 400)
    assert found["param"] == "structured_outputs.regex"
    assert kind not in found["message"].replace("outputs.regex", "")


def test_calls_in_messages_are_given_to_the_template_as_objects(tool_client):
    client, engine = tool_client
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    messages = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]
    response = chat(client, messages=messages, max_tokens=5, return_token_ids=True)
    assert "assistant: Bonn" in engine.tokenizer.decode(response.json()["prompt_token_ids"])
    call["function"]["arguments"] = "{"
    assert error(chat(client, messages=messages), 400)["param"] == "messages[1].tool_calls[0]"
