"""A submitted request, as its caller holds it: chunks as they come, the whole of it, a way to end it.

In: chunks from the engine's thread. Out: the same, in the thread or the event loop of one consumer.
Nobody waits for a slow consumer: what it has not taken yet is kept, at most all of its tokens.
"""

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator

from firp.runtime.errors import FirpError
from firp.runtime.loop.generation import Chunk, Generation, collect


class Handle:
    """One request. Iterate over it, or wait for its result; errors of the engine are raised there."""

    def __init__(self, request_id: str):
        self.id = request_id
        self.kv_bytes: int | None = None  # reserved for its keys and values; None: it has not begun
        self._chunks: list[Chunk] = []
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._wake: list[Callable[[], None]] = []  # of event loops that wait
        self._cancelled = threading.Event()

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self._error is not None or bool(self._chunks and self._chunks[-1].finish_reason)

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked for its end."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End the request after the step that runs now; its last chunk has the reason "cancelled"."""
        self._cancelled.set()

    def publish(self, chunk: Chunk) -> None:
        """Hand out a chunk; for the engine's thread."""
        self._change(lambda: self._chunks.append(chunk))

    def fail(self, error: BaseException) -> None:
        """End with an error; for the engine's thread."""
        self._change(lambda: setattr(self, "_error", error))

    def _change(self, change: Callable[[], None]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()
            wake, self._wake = self._wake, []
        for call in wake:
            call()

    def _has(self, place: int) -> bool:
        return len(self._chunks) > place or self.done

    def _get(self, place: int) -> Chunk | None:
        """A chunk that has come; None after the last one."""
        if len(self._chunks) > place:
            return self._chunks[place]
        if self._error is not None:
            raise self._error
        return None

    def __iter__(self) -> Iterator[Chunk]:
        """All chunks from the first on; waits for those that have not come yet."""
        place = 0
        while True:
            with self._changed:
                while not self._has(place):
                    self._changed.wait()
            chunk = self._get(place)
            if chunk is None:
                return
            yield chunk
            place += 1

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """All chunks from the first on, in an event loop."""
        place = 0
        while True:
            await self._until(functools.partial(self._has, place))
            chunk = self._get(place)
            if chunk is None:
                return
            yield chunk
            place += 1

    def result(self, timeout: float | None = None) -> Generation:
        """The whole of it. timeout: seconds. Raises FirpError when it is not done by then; the request
        goes on.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise FirpError("the request is not done", got=f"after {timeout} seconds")
        return collect(self)

    async def wait(self) -> Generation:
        """The whole of it, in an event loop."""
        await self._until(lambda: self.done)
        return collect(self)

    async def _until(self, happened: Callable[[], bool]) -> None:
        while True:
            waiter = asyncio.Event()
            wake = functools.partial(_call_in, asyncio.get_running_loop(), waiter.set)
            with self._changed:
                if happened():
                    return
                self._wake.append(wake)
            try:
                await waiter.wait()
            finally:  # whoever waits for a short time, again and again, leaves nothing
                with self._changed, contextlib.suppress(ValueError):
                    self._wake.remove(wake)


class Following:
    """Chunks of a handle, whose request ends when nobody listens any more."""

    def __init__(self, handle: Handle):
        self._handle = handle
        self._chunks = iter(handle)

    def __iter__(self) -> "Following":
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        """Stop listening."""
        self._handle.cancel()
        self._chunks.close()

    def __del__(self):
        self._handle.cancel()


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    """Call in an event loop, from any thread; a loop that has ended wants no call."""
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        return
