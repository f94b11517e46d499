"""Streams of events: what several requests emit, in one.

In: handles, JSON objects. Out: chunks with the number of their handle; server-sent events.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from firp.runtime.errors import FirpError
from firp.runtime.loop.generation import Chunk
from firp.runtime.scheduling.handle import Handle
from firp.runtime.serving.errors import ApiError, decoding_error

DONE = "data: [DONE]\n\n"
logger = logging.getLogger("firp.serving")


class Numbered(NamedTuple):
    """A chunk, and which of the handles it is of."""

    index: int
    chunk: Chunk


async def merged(handles: Sequence[Handle]) -> AsyncIterator[Numbered]:
    """Chunks of all handles as they come. Raises what a handle raises."""
    queue: asyncio.Queue[Numbered | BaseException | None] = asyncio.Queue()

    async def forward(index: int, handle: Handle) -> None:
        try:
            async for chunk in handle:
                queue.put_nowait(Numbered(index, chunk))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(forward(index, handle)) for index, handle in enumerate(handles)]
    try:
        running = len(tasks)
        while running:
            found = await queue.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                running -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()


async def events(objects: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Server-sent events of JSON objects; an error is the last of them."""
    try:
        async for found in objects:
            yield event(found)
    except ApiError as error:
        yield event(error.body)
    except FirpError as error:
        yield event(decoding_error(error).body)
    except Exception:
        logger.exception("a stream failed")
        yield event(ApiError(500, "The server had an error.", code="internal_error").body)
    yield DONE


def event(found: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(found, ensure_ascii=False, separators=(',', ':'))}\n\n"
