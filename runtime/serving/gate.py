"""The gate before the endpoints: who may come in, how many, and with how much.

In: ASGI requests. Out: the same with their body read, within limits; answers with a request id; one
line of log each. Everything under /v1 passes it; the other paths get a request id alone.
"""

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from firp.runtime.serving.errors import ApiError, draining_error
from firp.runtime.serving.settings import ServerSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_LINGER_BYTES = 64 << 20  # of a body that is refused: read and dropped, so that its client hears why
logger = logging.getLogger("firp.serving")


class Gate:
    """What comes in. `draining`: nothing new; `open_requests`: those under /v1 that have not ended."""

    def __init__(self, settings: ServerSettings, answered: Callable[[str, int], None]):
        """answered: is told the path and the status of every answer."""
        self.settings = settings
        self.answered = answered
        self.draining = False
        self.open_requests = 0

    async def admit(self, scope: Scope, receive: Receive) -> Receive:
        """Read a request's body. Raises ApiError for a request that does not come in."""
        if self.draining:
            raise draining_error()
        if not self.settings.admits(_bearer(scope)):
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
        if self.open_requests > self.settings.max_requests:
            limit = f"{self.settings.max_requests} requests are open, as many as this server takes."
            raise ApiError(429, limit, code="too_many_requests", retry=True)
        try:
            async with asyncio.timeout(self.settings.body_timeout_s):
                return _replayed(await self._body(scope, receive), receive)
        except TimeoutError as error:
            raise ApiError(408, "The request's body did not arrive in time.", code="body_timeout") from error

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        most = self.settings.max_body_bytes
        declared = _header(scope, b"content-length")
        size = int(declared) if declared.isdigit() else 0
        body = bytearray()
        while size <= most:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "The request's body is not complete.")
            body += message.get("body", b"")
            size = len(body)
            if not message.get("more_body", False) and size <= most:
                return bytes(body)
        raise ApiError(413, f"The request's body is larger than {most} bytes.", code="body_too_large")

    async def linger(self, scope: Scope, sent: "_Sent") -> None:
        """Read on, and drop it, after an answer: a connection that is closed while its client sends
        is reset, and the answer lost. A client that asked before it sent has its answer.
        """
        if _header(scope, b"expect"):
            return
        left = _LINGER_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.body_timeout_s):
                while sent.more and left > 0:
                    left -= len((await sent.receive()).get("body", b""))


class GateMiddleware:
    """An application behind a gate."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], gate: Gate):
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send, self._gate.settings.send_timeout_s)
        try:
            await self._pass(scope, receive, answer)
        except _HungClientError:  # without a whole answer uvicorn closes the connection
            logger.warning("%s its client reads nothing", scope["request_id"])

    async def _pass(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        path = _path(scope)
        if not path.startswith("/v1/"):
            await self._app(scope, receive, answer.send)
            return
        sent = _Sent(receive)
        refused: ApiError | None = None
        self._gate.open_requests += 1
        try:
            await self._app(scope, await self._gate.admit(scope, sent.receive), answer.send)
        except ApiError as error:
            refused = error
            await answer.refuse(error)
        finally:
            self._gate.open_requests -= 1
            answer.log()
            self._gate.answered(path, answer.status)
        if refused is not None:
            if refused.code != "body_timeout":
                await self._gate.linger(scope, sent)
            await answer.end()


class _Sent:
    """What a client sends. `more`: whether its body goes on."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self.more = True

    async def receive(self) -> Message:
        message = await self._receive()
        self.more = message.get("more_body", False)
        return message


class _HungClientError(Exception):
    """A client that leaves an answer unread."""


class _Answer:
    """What goes back, with the request's id in a header. status: 499 before it begins, as nginx
    logs a client that left.
    """

    def __init__(self, scope: Scope, send: Send, timeout_s: float):
        given = _header(scope, b"x-request-id")
        self._id = given if _ID.fullmatch(given) else f"req-{uuid.uuid4().hex}".encode()
        scope["request_id"] = self._id.decode()
        self._scope = scope
        self._send = send
        self._timeout_s = timeout_s
        self._began = time.monotonic()
        self.status = 499

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", []), (b"x-request-id", self._id)]}
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(message)
        except TimeoutError as error:
            raise _HungClientError from error

    async def refuse(self, error: ApiError) -> None:
        """Send all of an error, and leave its answer open."""
        body = json.dumps(error.body).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """Complete an answer that has been sent: what carries it may close the connection."""
        await self.send({"type": "http.response.body", "body": b""})

    def log(self) -> None:
        took = (time.monotonic() - self._began) * 1e3
        path = f"{self._scope['method']} {self._scope['path']!r:.120}"
        ids = " ".join(filter(None, (self._scope["request_id"], self._scope.get("answer_id"))))
        logger.info("%s %s %d %.0f ms", ids, path, self.status, took)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Give the body once, then what else arrives: that the client left."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


def _path(scope: Scope) -> str:
    """The path that the application's routes are compared with: below the one that it is mounted at."""
    path, root = scope["path"], scope.get("root_path", "")
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _bearer(scope: Scope) -> str:
    scheme, _, key = _header(scope, b"authorization").decode("latin-1").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
