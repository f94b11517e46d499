"""The process: its port, its certificate, and an end that loses no answer."""

import signal
import ssl
import subprocess
import time

import httpx2
import pytest
from support.fake_engine import FakeEngine
from support.http_server import complete, error, events
from support.served import running

from firp.runtime.errors import FirpError
from firp.runtime.serving.server import Certificate, bind


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


def test_a_client_shows_a_certificate_where_one_is_required(certificate):
    files = certificate / "cert.pem", certificate / "key.pem"
    rules = {"ca_certs": files[0], "cert_reqs": "required", "minimum_version": "TLSv1.3"}
    context = ssl.create_default_context(cafile=files[0])
    context.check_hostname = False
    with running(FakeEngine(), certificate=Certificate(*files, **rules)) as (_, url):
        with pytest.raises((httpx2.TransportError, ssl.SSLError)), httpx2.Client(verify=context) as client:
            client.get(f"{url}/healthz")
        context.load_cert_chain(*files)
        with httpx2.Client(verify=context) as client:
            assert client.get(f"{url}/healthz").status_code == 200
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((httpx2.TransportError, ssl.SSLError)), httpx2.Client(verify=context) as client:
            client.get(f"{url}/healthz")


def test_ciphers_are_those_of_the_option(certificate):
    cipher = "ECDHE-ECDSA-AES128-GCM-SHA256"
    files = certificate / "cert.pem", certificate / "key.pem"
    names = {one["name"] for one in Certificate(*files, ciphers=cipher).context().get_ciphers()}
    assert {name for name in names if not name.startswith("TLS_")} == {cipher}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"cert_reqs": "required"}, "bad TLS options"),
        ({"ca_certs": "cert.pem"}, "bad TLS options"),
        ({"ca_certs": "key.pem", "cert_reqs": "optional"}, "bad TLS authorities"),
        ({"ca_certs": "none.pem", "cert_reqs": "optional"}, "bad TLS authorities"),
        ({"ciphers": "ROT13"}, "bad TLS ciphers"),
    ],
)
def test_tls_options_that_do_not_hold_are_one_line(rules, message, certificate):
    if "ca_certs" in rules:
        rules = {**rules, "ca_certs": certificate / rules["ca_certs"]}
    with pytest.raises(FirpError, match=message):
        Certificate(certificate / "cert.pem", certificate / "key.pem", **rules)
