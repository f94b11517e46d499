"""Who comes in, how many, with how much; and what becomes of a client that leaves."""

import json
import re
import socket
import time

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from support.fake_engine import FakeEngine
from support.http_server import chat, complete, error, serving, wait_until

from firp.runtime.serving.app import build_app
from firp.runtime.serving.settings import ServerSettings

HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key-1\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
)


def test_keys_are_asked_for_where_something_is_decoded(url, client):
    for headers in ({}, {"authorization": "Bearer key-3"}, {"authorization": "Basic key-1"}):
        response = httpx2.get(f"{url}/v1/models", headers=headers)
        assert error(response, 401)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    assert client.get("/v1/models", headers={"authorization": "bearer key-1"}).status_code == 200
    for path in ("/healthz", "/version", "/metrics", "/"):
        assert httpx2.get(url + path).status_code == 200, path
    for path in ("/openapi.json", "/docs", "/redoc"):
        assert client.get(path).status_code == 404, path


def test_keys_are_asked_for_where_the_application_is_mounted():
    outer = Starlette(routes=[Mount("/llm", build_app(FakeEngine(), ServerSettings(api_keys=("key-1",))))])
    with serving(outer) as url:
        assert error(httpx2.get(f"{url}/llm/v1/models"), 401)
        assert error(complete(httpx2.Client(base_url=f"{url}/llm")), 401)
        right = httpx2.Client(base_url=f"{url}/llm", headers={"authorization": "Bearer key-1"})
        assert complete(right).status_code == 200
        assert 'path="/v1/completions",status="200"} 1.0' in httpx2.get(f"{url}/llm/metrics").text


def test_a_body_is_bounded_in_bytes_and_in_time(client, url):
    assert error(client.post("/v1/completions", content=b" " * 20_001), 413)["code"] == "body_too_large"
    chunked = client.post("/v1/completions", content=(b" " * 5_000 for _ in range(5)))
    assert error(chunked, 413)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as slow:
        slow.sendall(HEAD % 50 + b"{")
        assert b"408" in slow.recv(4096)


@pytest.mark.parametrize(
    ("key", "size", "status"), [(b"key-1", 20_001, 413), (b"key-1", 8 << 20, 413), (b"wrong", 8 << 20, 401)]
)
def test_a_client_that_sends_all_before_it_reads_hears_why_it_was_refused(key, size, status, url):
    host, port = url.removeprefix("http://").split(":")
    head = HEAD.replace(b"key-1", key).replace(b"host: x", b"host: x\r\nconnection: close") % size
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(head)
        for _ in range(0, size, 1 << 16):
            client.sendall(b" " * min(size, 1 << 16))
            size -= 1 << 16
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 %d" % status)
    assert answer.endswith(b"}}")


def test_what_is_read_of_a_refused_body_is_bounded(url, app, monkeypatch):
    monkeypatch.setattr("firp.runtime.serving.gate._LINGER_BYTES", 1 << 20)
    host, port = url.removeprefix("http://").split(":")
    head = HEAD.replace(b"host: x", b"host: x\r\nconnection: close") % (1 << 30)
    with socket.create_connection((host, int(port)), timeout=5) as client, pytest.raises(OSError):
        client.sendall(head)
        for _ in range(1 << 10):
            client.sendall(b" " * (1 << 16))
    assert app.state.gate.open_requests == 0


def test_a_client_that_asks_before_it_sends_is_told_at_once(url):
    host, port = url.removeprefix("http://").split(":")
    head = HEAD.replace(b"host: x", b"host: x\r\nexpect: 100-continue\r\nconnection: close") % (1 << 30)
    began = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(head)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 413")
    assert time.monotonic() - began < 0.25  # less than a body may take


def test_more_open_requests_than_the_limit_are_turned_away():
    engine = FakeEngine()
    engine.pace_s = 0.5
    asked = {"prompt": "x", "stream": True}
    with (
        serving(build_app(engine, ServerSettings(max_requests=1))) as url,
        httpx2.Client(base_url=url) as client,
        client.stream("POST", "/v1/completions", json=asked),
    ):
        response = complete(client)
        assert error(response, 429)["code"] == "too_many_requests"
        assert response.headers["retry-after"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_requests(stream, url, engine, client):
    def counted():
        label = f'firp_http_answers_total{{path="/v1/completions",status="{200 if stream else 499}"}} '
        return sum(float(line.removeprefix(label)) for line in metrics().splitlines() if label in line)

    def metrics():
        return client.get("/metrics").text

    answers = counted()
    engine.pace_s = 5
    before = len(engine.submitted)
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "x", "stream": stream, "n": 2}).encode()
    with socket.create_connection((host, int(port)), timeout=5) as gone:
        gone.sendall(HEAD % len(body) + body)
        wait_until(lambda: len(engine.submitted) == before + 2)
    wait_until(lambda: all(one.handle.cancelled for one in engine.submitted[before:]))
    wait_until(lambda: counted() == answers + 1)


def test_a_client_that_reads_nothing_is_left():
    engine = FakeEngine(["x" * 500_000] * 40)
    app = build_app(engine, ServerSettings(api_keys=("key-1",), send_timeout_s=0.2))
    with serving(app) as url:
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps({"prompt": "x", "stream": True}).encode()
        with socket.create_connection((host, int(port)), timeout=5) as hung:
            hung.sendall(HEAD % len(body) + body)
            wait_until(lambda: engine.submitted and engine.submitted[0].handle.cancelled)
            wait_until(lambda: app.state.gate.open_requests == 0)


def test_request_ids_come_back(client):
    assert client.get("/v1/models", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = [client.get("/v1/models", headers={"x-request-id": "not mine"}) for _ in range(2)]
    assert len({response.headers["x-request-id"] for response in made}) == 2


def test_a_line_of_log_tells_both_ids(client, caplog):
    caplog.set_level("INFO", "firp.serving")
    answer_id = chat(client, model="alias").json()["id"]
    wait_until(lambda: answer_id in caplog.text)
    assert re.search(rf"req-\w+ {answer_id} POST '/v1/chat/completions' 200 \d+ ms", caplog.text)


def test_health_says_what_is_wrong(client, app, engine):
    assert client.get("/healthz").json() == {"status": "ok"}
    engine.healthy = False
    assert client.get("/healthz").status_code == 503
    engine.healthy = True
    app.state.gate.draining = True
    try:
        assert client.get("/healthz").json() == {"status": "draining"}
        assert error(chat(client), 503)["code"] == "shutting_down"
    finally:
        app.state.gate.draining = False
