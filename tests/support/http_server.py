"""An application of firp on a port of this machine, in a thread of the test's process; what is sent to
it, and what comes back.
"""

import contextlib
import json
import threading
import time

import uvicorn


@contextlib.contextmanager
def serving(app):
    """The address of a running server."""
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def wait_until(true, seconds=5):
    """Wait for something that a server does; fails where it takes longer."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


MESSAGES = [{"role": "user", "content": "Hi"}]


def chat(client, **fields):
    """Post to /v1/chat/completions."""
    return client.post("/v1/chat/completions", json={"messages": MESSAGES, **fields})


def complete(client, **fields):
    """Post to /v1/completions."""
    return client.post("/v1/completions", json={"prompt": "Hi", **fields})


def events(response):
    """The objects of a stream, which ends as it must."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def error(response, status):
    """The error of an answer, in the shape that clients read."""
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert "\n" not in found["message"]
    return found
