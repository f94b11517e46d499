"""A server as `firp serve` runs it, in a thread of the test's process."""

import contextlib
import threading

from firp.runtime.serving.app import build_app
from firp.runtime.serving.server import Server, bind


@contextlib.contextmanager
def running(engine, drain_s=5.0, certificate=None, settings=None):
    """The server, and its address."""
    ready = threading.Event()
    with bind("127.0.0.1", 0) as socket:
        port = socket.getsockname()[1]
        server = Server(build_app(engine, settings), drain_s, certificate, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        assert ready.wait(10)
        try:
            yield server, f"{'https' if certificate else 'http'}://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()
