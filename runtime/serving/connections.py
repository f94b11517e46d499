"""Connections to a server: how many are open, how long one may take to say what it wants, and to read
what it gets.

In: bytes of a client. Out: requests, by uvicorn's own protocol. Who does not complete the headers of a
request in time is left, and so are who leaves answers unread, those of a connection that is being closed
too, and who connects when as many are open as there may be.
"""

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from firp.runtime.serving.settings import ServerSettings

_LEAST_READ = 65536  # bytes of what waits that a client takes in time, or all of it
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
        self._unread_clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take a connection, or close it at once where too many are open."""
        super().connection_made(transport)
        if len(self.connections) > self._settings.max_connections:
            logger.warning("%d connections are open: one more is closed", self._settings.max_connections)
            transport.abort()
        else:
            # whatever is not sent at once is known of; with TLS, asyncio takes 0 for always
            transport.set_write_buffer_limits(high=1 if self.scheme == "https" else 0, low=0)
            self._set_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_clock()
        self._stop_unread_clock()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._set_unread_clock()

    def resume_writing(self) -> None:
        """It has read all."""
        self._stop_unread_clock()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Read on; headers that are complete stop the clock."""
        super().data_received(data)
        self._set_clock()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; after a part of an answer nothing can be said."""
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.close()

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

    def _set_unread_clock(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._unread_clock = self.loop.call_later(self._settings.send_timeout_s, self._unread, left)

    def _stop_unread_clock(self) -> None:
        if self._unread_clock is not None:
            self._unread_clock.cancel()
            self._unread_clock = None

    def _unread(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() >= _LEAST_READ:
            self._set_unread_clock()
        else:
            logger.warning("a connection is closed: its client does not read what it is sent")
            self.transport.abort()
