"""The server as a process: a port, uvicorn, and an end that loses no answer.

In: an application, an address, a certificate. Out: answers, until SIGTERM or Ctrl-C; then what is new
gets 503, what runs has time to end, and the process leaves. A second signal ends it at once.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from firp.runtime.errors import FirpError
from firp.runtime.serving.connections import bounded_protocol

_TICK_S = 0.05
logger = logging.getLogger("firp.serving")


@dataclass(frozen=True)
class Certificate:
    """TLS: a certificate chain and its private key, as PEM files, and who may connect. Raises FirpError
    for files that are none, and for rules that let nobody in or change nothing.
    """

    certfile: Path
    keyfile: Path | None = None  # None: in the certificate's file
    password: str | None = None
    ca_certs: Path | None = None  # of those who sign clients' certificates
    cert_reqs: str = "none"  # of a client: none, optional, required
    ciphers: str | None = None  # of TLS 1.2, in OpenSSL's words; TLS 1.3 has its own
    minimum_version: str = "TLSv1.2"

    def __post_init__(self):
        if (self.cert_reqs == "none") != (self.ca_certs is None):
            got = f"--ssl-cert-reqs {self.cert_reqs} {'with' if self.ca_certs else 'without'} --ssl-ca-certs"
            expected = "both: whose certificates are asked for, and who signs them"
            raise FirpError("bad TLS options", got=got, expected=expected)
        self.context()

    def context(self) -> ssl.SSLContext:
        """What a server shakes hands with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        files = f"'{self.certfile}' and '{self.keyfile or self.certfile}'"
        with _tls_errors("certificate", files, "PEM files that belong together"):
            context.load_cert_chain(self.certfile, self.keyfile, lambda: self.password or "")
        with _tls_errors("authorities", f"'{self.ca_certs}'", "a PEM file of certificates"):
            if self.ca_certs is not None:
                context.load_verify_locations(self.ca_certs)
        with _tls_errors("ciphers", f"'{self.ciphers}'", "names as `openssl ciphers` has them"):
            if self.ciphers is not None:
                context.set_ciphers(self.ciphers)
        context.verify_mode = ssl.VerifyMode[f"CERT_{self.cert_reqs.upper()}"]
        context.minimum_version = ssl.TLSVersion[self.minimum_version.replace(".", "_")]
        return context


@contextlib.contextmanager
def _tls_errors(what: str, got: str, expected: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl's errors are among them
        got = f"{got}: {error.strerror or error}"
        raise FirpError(f"bad TLS {what}", got=got, expected=expected) from error


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
        options = {"log_config": None, "access_log": False, "server_header": False, "lifespan": "off"}
        options |= {"http": bounded_protocol(app.state.gate.settings), "ws": "none"}
        super().__init__(uvicorn.Config(app, timeout_graceful_shutdown=1, **options))
        if certificate is not None:
            self.config.load()
            self.config.ssl = certificate.context()
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
