"""The server as a process: a port, uvicorn, and an end that loses no answer.

In: an application, an address, a certificate. Out: answers, until SIGTERM or Ctrl-C; then what is new
gets 503, what runs has time to end, and the process leaves. A second signal ends it at once.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from firp.runtime.errors import FirpError

_TICK_S = 0.05
logger = logging.getLogger("firp.serving")


@dataclass(frozen=True)
class Certificate:
    """TLS: a certificate chain and its private key, as PEM files. Raises FirpError for files that are
    none.
    """

    certfile: Path
    keyfile: Path | None = None  # None: in the certificate's file
    password: str | None = None

    def __post_init__(self):
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.certfile, self.keyfile, lambda: self.password or "")
        except OSError as error:  # ssl's errors are among them
            got = f"'{self.certfile}' and '{self.keyfile or self.certfile}': {error.strerror or error}"
            raise FirpError(
                "bad TLS certificate", got=got, expected="PEM files that belong together"
            ) from error


def bind(host: str, port: int) -> socket.socket:
    """A socket of this address; nobody can connect before a server listens on it. Raises FirpError for
    an address that cannot be had, such as a port in use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        fix = "choose another --port, or end what uses it"
        raise FirpError("cannot listen", got=f"{host}:{port}: {reason}", fix=fix) from error
    return bound


class Server(uvicorn.Server):
    """Serves one application of `build_app` on one socket. drain_s: seconds that running requests get
    when it is to end; ready: called when it answers.
    """

    def __init__(
        self,
        app: FastAPI,
        drain_s: float,
        certificate: Certificate | None = None,
        ready: Callable[[], None] = lambda: None,
    ):
        tls = {}
        if certificate is not None:
            tls = {
                "ssl_certfile": certificate.certfile,
                "ssl_keyfile": certificate.keyfile,
                "ssl_keyfile_password": certificate.password,
            }
        options = {"log_config": None, "access_log": False, "server_header": False, "lifespan": "off"}
        super().__init__(uvicorn.Config(app, timeout_graceful_shutdown=1, **options, **tls))
        self._gate = app.state.gate
        self._service = app.state.service
        self._drain_s = drain_s
        self._ready = ready
        self._draining: asyncio.Task | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First drain; at a second signal, leave."""
        if self._gate.draining:
            self._service.cancel_all()
            self.should_exit = True
        self._gate.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to leave; begins to drain when it is asked for."""
        if self._gate.draining and self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        logger.info("draining %d requests", self._gate.open_requests)
        clock = asyncio.get_running_loop()
        end = clock.time() + self._drain_s
        while self._gate.open_requests and clock.time() < end and not self.should_exit:
            await asyncio.sleep(_TICK_S)
        self._service.cancel_all()
        self.should_exit = True
