"""The process: its port, its certificate, and an end that loses no answer."""

import contextlib
import signal
import ssl
import subprocess
import threading
import time

import httpx2
import pytest
from support.fake_engine import FakeEngine
from support.http_server import complete, error, events

from firp.runtime.errors import FirpError
from firp.runtime.serving.app import build_app
from firp.runtime.serving.server import Certificate, Server, bind


@contextlib.contextmanager
def running(engine, drain_s=5.0, certificate=None):
    ready = threading.Event()
    with bind("127.0.0.1", 0) as socket:
        port = socket.getsockname()[1]
        server = Server(build_app(engine), drain_s, certificate, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        assert ready.wait(10)
        try:
            yield server, f"{'https' if certificate else 'http'}://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


def begin_to_end(server, url):
    server.handle_exit(signal.SIGTERM, None)
    while httpx2.get(f"{url}/healthz").status_code != 503:
        time.sleep(0.01)


def test_what_runs_ends_and_what_is_new_is_turned_away():
    engine = FakeEngine(("a", "b", "c"))
    engine.pace_s = 0.2
    with running(engine) as (server, url), httpx2.Client(base_url=url) as client:
        with client.stream("POST", "/v1/completions", json={"prompt": "x", "stream": True}) as response:
            begin_to_end(server, url)
            turned_away = httpx2.post(f"{url}/v1/completions", json={"prompt": "x"})
            assert error(turned_away, 503)["code"] == "shutting_down"
            response.read()
        assert [one["choices"][0]["text"] for one in events(response)] == ["a", "b", "c", ""]
        while not server.should_exit:
            time.sleep(0.01)
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(url)


@pytest.mark.parametrize("signals", [1, 2])
def test_what_runs_too_long_is_cancelled(signals):
    engine = FakeEngine(("a", "b"))
    engine.pace_s = 30
    drain_s = 0.1 if signals == 1 else 30
    with running(engine, drain_s) as (server, url), httpx2.Client(base_url=url) as client:
        with client.stream("POST", "/v1/completions", json={"prompt": "x", "stream": True}) as response:
            for _ in range(signals):
                server.handle_exit(signal.SIGTERM, None)
            response.read()
        assert events(response)[-1]["error"]["code"] == "shutting_down"


def test_an_address_that_cannot_be_had_is_one_line():
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(FirpError, match=r"cannot listen \| got 127\.0\.0\.1:\d+: Address already in use"):
            bind("127.0.0.1", taken.getsockname()[1])
    for host in ("no.such.host.invalid", "300.1.1.1", "x" * 300, "192.0.2.1"):
        with pytest.raises(FirpError, match="cannot listen"):
            bind(host, 0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=127.0.0.1"]
    try:
        subprocess.run(["openssl", "req", "-x509", "-nodes", *kind, *files], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl command")
    return folder


def test_https(certificate):
    pair = Certificate(certificate / "cert.pem", certificate / "key.pem")
    context = ssl.create_default_context(cafile=certificate / "cert.pem")
    context.check_hostname = False
    with (
        running(FakeEngine(), certificate=pair) as (_, url),
        httpx2.Client(base_url=url, verify=context) as client,
    ):
        assert complete(client).json()["choices"][0]["text"] == "Hello."


def test_files_that_are_no_certificate_are_one_line(certificate, tmp_path):
    (tmp_path / "text").write_text("no")
    for files in (
        (tmp_path / "text", None),
        (tmp_path / "missing", None),
        (certificate / "cert.pem", None),
        (certificate / "cert.pem", tmp_path / "text"),
    ):
        with pytest.raises(FirpError, match="bad TLS certificate"):
            Certificate(*files)
