"""The serve command as a process: it says where it listens, ends without an error, and what is wrong
with its options is one line.
"""

import re
import signal
import socket

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
    process = start("serve", demo_bundle, *OPTIONS, "--api-key-file", tmp_path / "keys")
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
    too_many = httpx2.post(f"{url}/v1/completions", json={**asked, "max_tokens": 31}, headers=headers)
    assert too_many.json()["error"]["param"] == "max_tokens"
    assert 'firp_requests_total{reason="length"} 1.0' in httpx2.get(f"{url}/metrics").text
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in log
    assert re.search(r"req-\w+ cmpl-\w+ POST '/v1/completions' 200", log)


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
            (("--ssl-keyfile", tmp_path / "keys"), "--ssl-keyfile needs --ssl-certfile"),
            (("--ssl-certfile", tmp_path / "keys"), "bad TLS certificate"),
            (("--max-batch", 0), "bad max batch"),
            (("--max-body-bytes", 10), "bad max body bytes"),
            (("--served-model-name", "a b"), "bad served model name"),
            (("--kv-bytes", 0), "bad kv bytes"),
            (("--port", 0), "not a bundle"),
        ):
            with pytest.raises(FirpError, match=re.escape(message)):
                serve.main([*map(str, (tmp_path, *options))], standalone_mode=False)
