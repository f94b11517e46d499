"""What is wrong with a request is named, and what is wrong with the engine has a status of its own."""

import httpx2
import pytest
from pydantic import ValidationError
from support.fake_engine import FakeEngine
from support.http_server import MESSAGES, chat, complete, error, events, serving

from firp.runtime.errors import (
    EngineBusyError,
    EngineClosedError,
    FirpError,
    GrammarError,
    RequestTooLargeError,
)
from firp.runtime.serving.api.fields import ChatRequest, CompletionRequest
from firp.runtime.serving.app import build_app

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 1.5}, "n", "invalid_value"),
        ({"n": 65}, "n", "invalid_value"),
        ({"seed": True}, "seed", "invalid_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "invalid_value"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 101}, "max_tokens", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"audio": {}}, "audio", "unsupported_parameter"),
        ({"functions": []}, "functions", "unsupported_parameter"),
        ({"modalities": ["audio"]}, "modalities[0]", "invalid_value"),
        ({"tempreature": 1}, "tempreature", "unknown_parameter"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "invalid_value"),
        ({"tools": TOOLS}, "tools", "unsupported_parameter"),  # this template has none
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "invalid_value"),
        ({"structured_outputs": {"json": {"type": "x"}}}, "structured_outputs.json", "invalid_value"),
        ({"logit_bias": {"9" * 5000: 1}}, f"logit_bias.{'9' * 60}…", "invalid_value"),
        ({"n" * 5000: 1}, f"{'n' * 60}…", "unknown_parameter"),
        ({"messages": [{**MESSAGES[0], "n" * 5000: 1}]}, f"messages[0].{'n' * 60}…", "unknown_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages", "invalid_value"),
        ({"messages": [{**MESSAGES[0], "colour": 1}]}, "messages[0].colour", "unknown_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "invalid_value"),
        ({"messages": MESSAGES * 30}, "messages", "context_length_exceeded"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs", "invalid_value"),
        ({"deadline_s": 0}, "deadline_s", "invalid_value"),
        ({"model": "gpt-4"}, "model", "model_not_found"),
    ],
)
def test_what_is_wrong_is_named(fields, param, code, client):
    found = error(chat(client, **fields), 404 if param == "model" else 400)
    assert (found["param"], found["code"]) == (param, code)
    assert found["type"] in ("invalid_request_error", "not_found_error")
    assert len(found["message"]) < 500


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"n": 33, "prompt": ["a", "b"]}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 6}, "logprobs"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"messages": MESSAGES}, "messages"),
    ],
)
def test_what_is_wrong_with_a_completion_is_named(fields, param, client):
    assert error(complete(client, **fields), 400)["param"] == param


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ["a"] * 20_000},
        {"prompt": [[1]] * 20_000},
        {"prompt": [1, "a"] * 20_000},
        {"prompt": "a", "stop_token_ids": ["a"] * 20_000},
        {"prompt": "a", "logit_bias": dict.fromkeys(map("x{}".format, range(20_000)), 1)},
        {"prompt": "a", **dict.fromkeys(map("x{}".format, range(20_000)), 1)},
        {"messages": ["a"] * 20_000},
        {"messages": MESSAGES, "tools": ["a"] * 20_000},
        {"messages": MESSAGES, "structured_outputs": {"choice": [1] * 20_000}},
    ],
)
def test_what_is_wrong_a_thousand_times_is_looked_for_once(fields):
    kind = ChatRequest if "messages" in fields else CompletionRequest
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(fields)
    assert caught.value.error_count() <= 4  # one of each kind that the field may be of


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"prompt":"\xff"}', "application/json"),
        (b'{"prompt":' + b"[" * 10_000, "application/json"),
        (b'{"prompt":"a","seed":' + b"1" * 5000 + b"}", "application/json"),
        (b'{"prompt":"a"', "application/json"),
        (b'{"prompt":"a"}', "text/plain"),
    ],
)
def test_a_body_that_is_no_json_is_called_that(body, kind, client):
    response = client.post("/v1/completions", content=body, headers={"content-type": kind})
    found = error(response, 400)
    assert found["code"] == "invalid_json"
    assert found["message"].startswith("The request's body is not JSON: ")
    assert len(found["message"]) < 300


def test_a_model_without_a_tokenizer_takes_token_ids():
    engine = FakeEngine()
    app = build_app(engine)
    engine.tokenizer = app.state.service.tokens = None
    with serving(app) as url, httpx2.Client(base_url=url) as client:
        assert error(complete(client), 400)["param"] == "prompt"
        assert error(complete(client, prompt=[1, 2], logprobs=1), 400)["param"] == "logprobs"


def test_a_context_that_is_too_small_is_said_in_the_words_that_clients_know(client):
    found = error(complete(client, prompt="x" * 200, max_tokens=100), 400)
    assert found["message"].startswith(
        "This model's maximum context length is 256 tokens. However, you requested"
    )
    assert "300 tokens (200 in the prompt, 100 in the completion)" in found["message"]


@pytest.mark.parametrize(
    ("raised", "status", "code", "retry"),
    [
        (EngineBusyError("the queue is full", got=64), 429, "engine_busy", "true"),
        (EngineClosedError("the engine is closed"), 503, "engine_closed", "true"),
        (RequestTooLargeError("too large", got="9 GiB", expected="1 GiB"), 400, "request_too_large", "false"),
        (FirpError("bad logit_bias", got="x"), 400, "invalid_value", "false"),
    ],
)
def test_errors_of_the_engine_have_a_status_and_say_if_to_try_again(
    raised, status, code, retry, client, engine
):
    engine.busy = raised
    response = chat(client)
    assert error(response, status)["code"] == code
    assert response.headers["x-should-retry"] == retry
    assert ("retry-after" in response.headers) == (retry == "true")


def test_a_stream_that_fails_ends_with_the_error(client, engine):
    engine.error = EngineClosedError("the engine thread is dead")
    *_, last = events(chat(client, stream=True))
    assert last["error"]["code"] == "engine_closed"
    assert error(chat(client), 503)["code"] == "engine_closed"
    engine.error = FirpError("the model's logits are not finite", got="nan")
    assert events(chat(client, stream=True))[-1]["error"]["code"] == "decoding_failed"
    assert error(chat(client), 500)["code"] == "decoding_failed"
    engine.error = GrammarError("the grammar cannot go on", got="no text meets it")
    assert events(chat(client, stream=True))[-1]["error"]["code"] == "grammar_failed"
    assert error(chat(client), 400)["code"] == "grammar_failed"
    engine.error = RuntimeError("a bug: secret")
    *_, last = events(chat(client, stream=True))
    assert last["error"] == {"message": "The server had an error.", "type": "server_error"} | {
        "param": None,
        "code": "internal_error",
    }
    assert error(chat(client), 500)["code"] == "internal_error"


@pytest.mark.parametrize(("reason", "status"), [("deadline", 408), ("cancelled", 503)])
def test_a_request_that_was_ended_is_an_error(reason, status, client, engine):
    engine.reason = reason
    assert error(chat(client, deadline_s=0.01), status)
    assert error(complete(client), status)
    assert "error" in events(chat(client, stream=True))[-1]
    assert "error" in events(complete(client, stream=True))[-1]
