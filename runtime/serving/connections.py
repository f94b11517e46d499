"""Connections to a server: how many are open, and how long one may take to say what it wants.

In: bytes of a client. Out: requests, by uvicorn's own protocol. Who does not complete the headers of a
request in time is left, and so is who connects when as many are open as there may be.
"""

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from firp.runtime.serving.settings import ServerSettings

logger = logging.getLogger("firp.serving")


def bounded_protocol(settings: ServerSettings) -> Callable[..., asyncio.Protocol]:
    """What makes a protocol for each connection, as uvicorn's `http` option takes it."""
    return functools.partial(BoundedProtocol, settings)


class BoundedProtocol(H11Protocol):
    """One connection. Between two requests, and before the first, a clock runs; what is left of a body
    that nobody reads counts as that too.
    """

    def __init__(self, settings: ServerSettings, *given: Any, **options: Any):
        super().__init__(*given, **options)
        self._settings = settings
        self._clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take a connection, or close it at once where too many are open."""
        super().connection_made(transport)
        if len(self.connections) > self._settings.max_connections:
            logger.warning("%d connections are open: one more is closed", self._settings.max_connections)
            transport.abort()
        else:
            self._set_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; headers that are complete stop the clock."""
        super().data_received(data)
        self._set_clock()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._set_clock()

    def _set_clock(self) -> None:
        waits = self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE
        if not waits or self.transport.is_closing():
            self._stop_clock()
        elif self._clock is None:
            self._clock = self.loop.call_later(self._settings.headers_timeout_s, self._late)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _late(self) -> None:
        logger.warning("a connection is closed: its request did not arrive in time")
        self.timeout_keep_alive_handler()
