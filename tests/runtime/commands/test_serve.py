"""The serve command as a process: it says where it listens, ends without an error, and what is wrong
with its options is one line.
"""

import contextlib
import re
import signal
import socket
import time

import httpx2
import pytest
from support.command_line import start, wait_for

from firp.runtime.commands.serve import serve
from firp.runtime.errors import FirpError
from firp.runtime.sampling import SamplingParams

OPTIONS = ("--port", 0, "--served-model-name", "demo", "--max-batch", 2, "--threads", 1, "--max-tokens", 30)


@pytest.fixture
def served(demo_bundle, tmp_path):
    """A running server with a key, and its address."""
    (tmp_path / "keys").write_text("key-1\n")
    keys = ("--api-key-file", tmp_path / "keys", "--api-key", "key-2", "--api-key", "key-3")
    process = start("serve", demo_bundle, *OPTIONS, *keys)
    try:
        line = wait_for(process.stderr, "Ctrl-C ends it")
        yield process, re.search(r"demo at (http://127\.0\.0\.1:\d+);", line)[1]
    finally:
        process.kill()
        process.communicate()


def test_it_answers_and_ends_with_status_0(served, demo_engine):
    process, url = served
    asked = {"prompt": "def add(a, b):", "max_tokens": 20, "temperature": 0}
    headers = {"authorization": "Bearer key-1"}
    answer = httpx2.post(f"{url}/v1/completions", json=asked, headers=headers, timeout=60).json()
    expected = demo_engine.generate(asked["prompt"], SamplingParams(20), plain=True)
    assert answer["choices"][0]["text"] == expected.text
    assert httpx2.post(f"{url}/v1/completions", json=asked).status_code == 401
    for key, status in (("key-2", 200), ("key-3", 200), ("key-4", 401)):
        headers = {"authorization": f"Bearer {key}"}
        assert httpx2.get(f"{url}/v1/models", headers=headers).status_code == status
    headers = {"authorization": "Bearer key-1"}
    too_many = httpx2.post(f"{url}/v1/completions", json={**asked, "max_tokens": 31}, headers=headers)
    assert too_many.json()["error"]["param"] == "max_tokens"
    assert 'firp_requests_total{reason="length"} 1.0' in httpx2.get(f"{url}/metrics").text
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in log
    assert re.search(r"req-\w+ cmpl-\w+ POST '/v1/completions' 200", log)


def test_kill_9_breaks_the_connection_and_damages_nothing(served, demo_bundle):
    process, url = served
    files = {path.name: path.stat().st_mtime_ns for path in demo_bundle.iterdir()}
    asked = {"prompt": "def add(a, b):", "max_tokens": 30, "stream": True, "ignore_eos": True}
    headers = {"authorization": "Bearer key-1"}
    with (
        httpx2.stream("POST", f"{url}/v1/completions", json=asked, headers=headers, timeout=60) as response,
        pytest.raises(httpx2.RemoteProtocolError),
    ):
        for line in response.iter_lines():
            assert line != "data: [DONE]"
            process.send_signal(signal.SIGSTOP)  # so that it is killed before its answer is whole
            process.kill()
    assert process.wait(20) == -signal.SIGKILL
    assert {path.name: path.stat().st_mtime_ns for path in demo_bundle.iterdir()} == files


def test_a_full_disk_takes_the_log_and_nothing_else(demo_bundle, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # else nothing is left to be written at the end
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--port", port, "--threads", 1)
    with open("/dev/full", "w") as full:
        process = start("serve", demo_bundle, *options, stderr=full)
    try:
        url = f"http://127.0.0.1:{port}"
        while process.poll() is None:
            with contextlib.suppress(httpx2.ConnectError):
                assert httpx2.get(f"{url}/healthz", timeout=60).status_code == 200
                break
            time.sleep(0.05)
        asked = {"prompt": "def add(a, b):", "max_tokens": 5}
        for _ in range(2):
            answer = httpx2.post(f"{url}/v1/completions", json=asked, timeout=60)
            assert answer.json()["usage"]["completion_tokens"] == 5
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def test_what_is_wrong_with_options_is_said_before_anything_is_loaded(tmp_path):
    (tmp_path / "keys").write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for options, message in (
            (("--port", port), f"cannot listen | got 127.0.0.1:{port}: Address already in use"),
            (("--api-key-file", tmp_path / "keys"), "no API key in the file"),
            (("--api-key-file", tmp_path / "none"), "cannot read the API keys"),
            (("--api-key", "two words"), "bad api keys"),
            (("--api-key", ""), "bad api keys"),  # of a variable that is not set: not an open server
            (("--ssl-keyfile", tmp_path / "keys"), "TLS options need --ssl-certfile"),
            (("--ssl-ciphers", "HIGH"), "TLS options need --ssl-certfile"),
            (("--ssl-minimum-version", "TLSv1.3"), "TLS options need --ssl-certfile"),
            (("--ssl-certfile", tmp_path / "keys"), "bad TLS certificate"),
            (("--max-batch", 0), "bad max batch"),
            (("--max-body-bytes", 10), "bad max body bytes"),
            (("--served-model-name", "a b"), "bad served model name"),
            (("--kv-bytes", 0), "bad kv bytes"),
            (("--prefix-bytes", -1), "bad prefix bytes"),
            (("--port", 0), "not a bundle"),
        ):
            with pytest.raises(FirpError, match=re.escape(message)):
                serve.main([*map(str, (tmp_path, *options))], standalone_mode=False)
