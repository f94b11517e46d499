"""Prompts of megabytes: those that can never fit are refused at once, the others are read one by one, and
nobody else waits for them.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from support import fake_engine
from support.fake_engine import FakeEngine
from support.http_server import complete, error, wait_until
from support.served import running
from tokenizers import Tokenizer

from firp.runtime import requests
from firp.runtime.loop.text import encode_text

LARGE = "x" * 100_000


@pytest.fixture
def client():
    engine = FakeEngine(context=10**6)
    with running(engine) as (server, url), httpx2.Client(base_url=url, timeout=60) as made:
        made.server, made.engine = server, engine
        yield made


@pytest.fixture
def tokenized(monkeypatch):
    """Large texts that are being tokenized, and that were; they take until `go_on` is set."""
    now, seen, go_on = [], [], threading.Event()

    def slow(tokenizer, text):
        if len(text) == len(LARGE):
            now.append(text)
            seen.append(len(now))
            go_on.wait(60)
            now.pop()
        return encode_text(tokenizer, text[:10])

    monkeypatch.setattr(fake_engine, "encode_text", slow)
    yield seen, go_on
    go_on.set()


def test_large_prompts_wait_for_each_other_and_small_ones_do_not(client, tokenized):
    seen, go_on = tokenized
    with ThreadPoolExecutor(4) as clients:
        answers = [clients.submit(complete, client, prompt=LARGE) for _ in range(4)]
        wait_until(lambda: client.server._gate.open_requests == 4)
        assert complete(client).status_code == 200
        go_on.set()
        assert [answer.result().status_code for answer in answers] == [200] * 4
    assert seen == [1] * 4


def test_what_a_client_asked_who_has_left_is_not_tokenized(client, tokenized):
    seen, go_on = tokenized
    with ThreadPoolExecutor(2) as clients:
        first = clients.submit(complete, client, prompt=LARGE)
        wait_until(lambda: seen)
        with pytest.raises(httpx2.ReadTimeout):
            complete_once = {"json": {"prompt": LARGE}, "timeout": httpx2.Timeout(30, read=0.2)}
            client.post("/v1/completions", **complete_once)
        wait_until(lambda: len(client.server.server_state.connections) == 1)  # the server has seen it leave
        go_on.set()
        assert first.result().status_code == 200
    wait_until(lambda: not client.server._gate.open_requests)
    assert len(seen) == 1
    assert len(client.engine.submitted) == 1


def test_a_text_that_can_never_fit_is_refused_untokenized(demo_engine, monkeypatch):
    monkeypatch.setattr(requests, "encode_text", None)
    with running(demo_engine) as (_, url), httpx2.Client(base_url=url, timeout=60) as client:
        found = error(complete(client, prompt="Hello, world. " * 200_000), 400)
    assert (found["code"], found["param"]) == ("context_length_exceeded", "prompt")
    assert "got 2800000 characters" in found["message"]


def test_other_threads_run_beside_a_text_that_is_tokenized(demo_bundle):
    tokenizer = Tokenizer.from_file(str(demo_bundle / "tokenizer.json"))
    moments, ended = [], threading.Event()

    def tick():
        while not ended.wait(0.002):
            moments.append(time.monotonic())

    clock = threading.Thread(target=tick)
    clock.start()
    began = time.monotonic()
    encode_text(tokenizer, "Hello, world. " * 30_000)
    took = time.monotonic() - began
    ended.set()
    clock.join()
    inside = [moment for moment in moments if began + 0.1 * took < moment < began + 0.6 * took]
    assert len(inside) >= 3
