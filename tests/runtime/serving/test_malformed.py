"""Two hundred bodies that are damaged in ways of their own: each gets a clean 4xx, of a real engine. What
a change leaves whole by the rules of docs/serving.md stands apart, with its reason, and is answered.
"""

import itertools
import json
import math
import random
import re
from typing import Any, NamedTuple

import httpx2
import pytest
from support.http_server import serving
from support.tool_bundle import add_tools

from firp.runtime.engine import Engine
from firp.runtime.serving.app import build_app
from firp.runtime.serving.settings import ServerSettings

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


class Change(NamedTuple):
    """A body in which one thing is other. act: removed, added, replaced; trail: the way to it."""

    body: Any
    act: str
    trail: tuple = ()
    value: Any = None


def mutated(draw, value, trail=()):
    """The value, with something in it replaced, taken away, added, or repeated."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.2:
        strange = draw.choice(STRANGE)
        return Change(strange, "replaced", trail, strange)
    copy = value.copy()
    key = draw.choice(list(copy)) if isinstance(copy, dict) else draw.randrange(len(copy))
    act = draw.randrange(5)
    if act == 0:
        del copy[key]
        return Change(copy, "removed", (*trail, key))
    if act == 1 and isinstance(copy, dict):
        name, strange = draw.choice(NAMES), draw.choice(STRANGE)
        copy[name] = strange
        return Change(copy, "replaced" if name in value else "added", (*trail, name), strange)
    below = mutated(draw, copy[key], (*trail, key))
    copy[key] = below.body
    return below._replace(body=copy)


# what a request cannot be without; any other field may be left out, and null is as if it were
NEEDED = re.compile(
    r"chat messages|messages\.0(\..*)?|tools(\.0(\.type|\.function(\.name)?)?)?|chat logprobs"
    r"|response_format(\.type|\.json_schema(\.name)?)|chat_template_kwargs\.(self|messages)"
    r"|text prompt|structured_outputs\.choice(\.0)?|text n"
)
# what is no field, and so cannot be null
ENTRIES = re.compile(r"(stop|stop_token_ids|prompt)\.\d|logit_bias\..*|.*\.(schema|parameters)\.type")
# where anything may be added: schemas have keywords of others, templates names of their own
OPEN = re.compile(
    r".*\.schema\..*|.*\.parameters\.(?!n{99}).*"  # nor more in a tool than the context holds
    r"|chat_template_kwargs\.(?!(self|messages)$).*"
)


def is_text(value):
    return isinstance(value, str) and value not in ("", "\ud800")


def is_short(value):
    return is_text(value) and len(value) < 100


def one_of(*right):
    return lambda value: any(value is one or (type(value) is type(one) and value == one) for one in right)


# what of STRANGE a field may be
RIGHT = {
    r"stop": lambda value: is_text(value) or value == [],
    r"stop\.0|structured_outputs\.choice\.0|response_format\.json_schema\.name": is_text,
    r"prompt|prompt\.\d|messages\.0\.content": is_short,
    r"tools\.0\.function\.name": one_of("x", "1e999"),
    r"temperature|min_p|top_logprobs|stop_token_ids\.0|text max_tokens|text logprobs": one_of(0),
    r"seed|logit_bias\.3": one_of(0, -1),
    r"top_k": one_of(0, -1, 10**30),
    r"deadline_s": one_of(10**30, 1e308),
    r"stream|echo|chat logprobs": one_of(True),
    r"stop_token_ids": one_of([]),
    r"logit_bias": one_of({}),
    r"chat_template_kwargs|.*\.(schema|parameters)": lambda value: isinstance(value, dict),
    r"chat_template_kwargs\.a.*": lambda value: True,
}


def is_whole(path, change):
    """Whether a changed body is right all the same."""
    trail = ".".join(map(str, change.trail))
    names = trail, f"{'chat' if 'chat' in path else 'text'} {trail}"
    if not change.trail:
        return False
    if change.act == "removed" or (change.value is None and not ENTRIES.fullmatch(trail)):
        return not any(NEEDED.fullmatch(name) for name in names)
    if change.act == "added":
        number = not isinstance(change.value, float) or math.isfinite(change.value)
        return OPEN.fullmatch(trail) is not None and (number or "template" in trail)
    right = [rule for pattern, rule in RIGHT.items() for name in names if re.fullmatch(pattern, name)]
    return any(rule(change.value) for rule in right)


def changes(path, whole):
    """A hundred bodies that are damaged, or a few that are whole."""
    draw = random.Random(12)
    drawn = iter(lambda: mutated(draw, WHOLE[path]), None)
    picked = (change.body for change in drawn if is_whole(path, change) is whole)
    return list(itertools.islice(picked, 15 if whole else 100))


def damaged(path):
    """The bytes of a hundred bodies; of every ten, three are no JSON either."""
    draw = random.Random(12)
    for i, body in enumerate(changes(path, whole=False)):
        text = json.dumps(body)
        if i % 10 == 0:
            text = text[: draw.randrange(len(text))]
        elif i % 10 == 1:
            text = "[" * 100_000 if i == 1 else text.replace(":", draw.choice([",", "::", ":\x01"]), 1)
        yield text.encode() if i % 10 != 2 else text.encode().replace(b'"', b"\xff", 1)


@pytest.fixture(scope="module")
def client(demo_bundle, tmp_path_factory):
    bundle = add_tools(demo_bundle, tmp_path_factory.mktemp("malformed"))
    with (
        Engine.load(bundle, threads=1) as engine,
        serving(build_app(engine, ServerSettings(("support",)))) as url,
        httpx2.Client(base_url=url, timeout=60, headers={"content-type": "application/json"}) as made,
    ):
        yield made


@pytest.mark.parametrize("path", WHOLE)
def test_a_damaged_body_is_a_clean_4xx(path, client):
    statuses = []
    for body in damaged(path):
        response = client.post(path, content=body)
        statuses.append(response.status_code)
        assert 400 <= response.status_code < 500, (body[:500], response.text)
        found = response.json()["error"]
        assert 0 < len(found["message"]) < 1000
        assert len(found["param"] or "") <= 200
    assert len(statuses) == 100
    assert client.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("path", WHOLE)
def test_what_is_whole_all_the_same_is_answered(path, client):
    for body in [WHOLE[path], *changes(path, whole=True)]:
        response = client.post(path, content=json.dumps(body))
        assert response.status_code == 200, (body, response.text)
