"""Two hundred bodies that are damaged in ways of their own: each gets a clean 4xx, or an answer."""

import json
import random

import httpx2
import pytest
from support.fake_engine import TOOL_TEMPLATE, FakeEngine
from support.http_server import serving

from firp.runtime.serving.app import build_app

FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
WHOLE = {
    "/v1/chat/completions": {
        "model": "support",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 5,
        "n": 1,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["x"],
        "seed": 1,
        "stream": False,
        "logit_bias": {"3": 1},
        "logprobs": True,
        "top_logprobs": 1,
        "response_format": FORMAT,
        "tools": [TOOL],
        "tool_choice": "auto",
        "chat_template_kwargs": {"a": 1},
        "stop_token_ids": [3],
        "deadline_s": 5,
    },
    "/v1/completions": {
        "model": "support",
        "prompt": ["a", "b"],
        "max_tokens": 5,
        "echo": True,
        "logprobs": 1,
        "structured_outputs": {"choice": ["a"]},
        "n": 2,
        "best_of": 2,
        "min_p": 0.1,
        "top_k": 4,
    },
}
STRANGE = [
    *(None, True, -1, 0, 10**30, 1e308, float("nan"), float("-inf"), "", "x", "\x00", "\ud800", "é" * 3000),
    *([], [[]], [None], {}, {"": 0}, {"a": {"b": {}}}, [1, "a"], [[1], "a"], -(2**63) - 1, "1e999"),
]
NAMES = ["x", "", "self", "messages", "__class__", "prompt", "n" * 5000]


def mutated(draw, value):
    """The value, with something in it replaced, taken away, added, or repeated."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.2:
        return draw.choice(STRANGE)
    copy = value.copy()
    key = draw.choice(list(copy)) if isinstance(copy, dict) else draw.randrange(len(copy))
    act = draw.randrange(5)
    if act == 0:
        del copy[key]
    elif act == 1 and isinstance(copy, dict):
        copy[draw.choice(NAMES)] = draw.choice(STRANGE)
    else:
        copy[key] = mutated(draw, copy[key])
    return copy


def bodies(path):
    draw = random.Random(12)
    for i in range(100):
        body = mutated(draw, WHOLE[path])
        text = json.dumps(body)
        if i % 10 == 0:
            text = text[: draw.randrange(len(text))]
        elif i % 10 == 1:
            text = "[" * 100_000 if i == 1 else text.replace(":", draw.choice([",", "::", ":\x01"]), 1)
        yield text.encode() if i % 10 != 2 else text.encode().replace(b'"', b"\xff", 1)


@pytest.mark.parametrize("path", WHOLE)
def test_a_damaged_body_is_a_clean_4xx(path):
    statuses = []
    with serving(build_app(FakeEngine(template=TOOL_TEMPLATE))) as url, httpx2.Client(base_url=url) as client:
        for body in bodies(path):
            response = client.post(path, content=body, headers={"content-type": "application/json"})
            statuses.append(response.status_code)
            assert response.status_code == 200 or 400 <= response.status_code < 500, (
                body[:500],
                response.text,
            )
            if response.status_code != 200:
                found = response.json()["error"]
                assert found["message"]
                assert len(found["message"]) < 1000
        assert client.get("/healthz").status_code == 200
    assert statuses.count(200) < 50
    assert len(statuses) == 100
