"""Connections that say nothing, or too little, or read nothing, are closed; there are only so many of
them.
"""

import json
import socket
import time
from types import SimpleNamespace

import httpx2
import pytest
from support.fake_engine import FakeEngine
from support.http_server import complete, events, wait_until
from support.served import running

from firp.runtime.serving.connections import BoundedProtocol
from firp.runtime.serving.settings import ServerSettings

HALF = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
WHOLE = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=5)


def closed(connection):
    """Whether the server has closed a connection, or does so within 5 seconds."""
    try:
        while connection.recv(4096):  # what is left of an answer
            pass
        return True
    except ConnectionResetError:
        return True


@pytest.fixture(scope="module")
def url():
    settings = ServerSettings(max_connections=3, headers_timeout_s=0.3)
    engine = FakeEngine(("a", "b", "c"))
    engine.pace_s = 0.2
    with running(engine, settings=settings) as (_, address):
        yield address


@pytest.mark.parametrize("sent", [b"", b"P", HALF, WHOLE + HALF])
def test_headers_that_are_not_complete_in_time_end_a_connection(sent, url):
    with connect(url) as hung:
        hung.sendall(sent)
        if sent.startswith(WHOLE):
            assert b"200 OK" in hung.recv(4096)
        assert closed(hung)


def test_a_client_that_sends_its_headers_byte_by_byte_is_left(url):
    began = time.monotonic()
    with connect(url) as slow, pytest.raises(OSError):
        while time.monotonic() < began + 5:
            slow.sendall(b"x")
            time.sleep(0.02)
    assert time.monotonic() < began + 2


def test_a_body_that_nobody_reads_ends_a_connection_too(url):
    with connect(url) as slow:
        slow.sendall(b"POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        assert b"404" in slow.recv(4096)
        slow.sendall(b" ")
        assert closed(slow)


def test_an_answer_takes_as_long_as_it_takes(url):
    with httpx2.Client(base_url=url) as client:
        answer = complete(client, stream=True, n=2)
        assert [one["choices"][0]["finish_reason"] for one in events(answer)].count("stop") == 2
        assert complete(client).status_code == 200


def test_connections_are_bounded(url):
    open_ones = [connect(url) for _ in range(3)]
    time.sleep(0.1)
    with connect(url) as one_more:
        one_more.settimeout(0.15)  # at once, not because its time is over
        assert closed(one_more)
    open_ones[0].sendall(WHOLE)
    assert b"200 OK" in open_ones[0].recv(4096)
    for one in open_ones:
        one.close()
    time.sleep(0.1)
    with connect(url) as later:
        later.sendall(WHOLE)
        assert b"200 OK" in later.recv(4096)


@pytest.fixture
def unread():
    """A server that waits half a second for those who read; its connections and its address."""
    engine = FakeEngine(["x" * 65536] * 100)
    engine.pace_s = 0
    with running(engine, settings=ServerSettings(send_timeout_s=0.5)) as (server, address):
        yield server.server_state, address


def ask(url, sent):
    """A client that asks, and has little room for what it is sent."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = url.removeprefix("http://").split(":")
    client.settimeout(10)
    client.connect((host, int(port)))
    client.sendall(sent)
    return client


def post(**fields):
    """A request for the long text of `unread`."""
    body = json.dumps({"prompt": "Hi", **fields}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(
    "sent",
    [
        post(),
        post(stream=True),
        post().replace(b"host", b"connection: close\r\nhost"),
        WHOLE * 20 + post(n=2),
    ],
    ids=["whole", "stream", "closing", "pipelined"],
)
def test_who_reads_nothing_is_left_even_where_the_answer_is_complete(sent, unread, caplog):
    state, url = unread
    with ask(url, sent):
        wait_until(lambda: state.connections)
        wait_until(lambda: not state.connections and not state.tasks, seconds=20)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(("sizes", "left"), [((300_000, 200_000, 130_000), 0), ((300_000, 290_000), 1)])
def test_who_reads_slowly_has_time_as_long_as_it_goes_on(sizes, left):
    sizes, calls, aborted = list(sizes), [], []
    protocol = object.__new__(BoundedProtocol)
    protocol._settings = ServerSettings()
    protocol.loop = SimpleNamespace(call_later=lambda seconds, *call: calls.append(call))
    protocol.flow = SimpleNamespace(pause_writing=lambda: None)
    protocol.transport = SimpleNamespace(
        get_write_buffer_size=lambda: sizes[0], abort=lambda: aborted.append(1)
    )
    protocol.pause_writing()
    while len(sizes) > 1:
        sizes.pop(0)
        act, *given = calls.pop()
        act(*given)
    assert len(aborted) == left
    assert len(calls) == 1 - left


def test_what_is_no_http_after_an_answer_ends_a_connection_quietly(unread, caplog):
    with ask(unread[1], b"POST /nothing HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n") as client:
        assert b"404" in client.recv(4096)
        client.sendall(b"no size\r\n")
        assert closed(client)
    assert "Traceback" not in caplog.text
