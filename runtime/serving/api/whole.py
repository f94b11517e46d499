"""Answers that are sent in one piece. In: handles. Out: their results, all or an error."""

import asyncio
from collections.abc import Sequence

from firp.runtime.errors import FirpError
from firp.runtime.loop.generation import Generation
from firp.runtime.scheduling.handle import Handle
from firp.runtime.serving.errors import decoding_error, ended_error


async def results(handles: Sequence[Handle]) -> list[Generation]:
    """The results of all handles. Raises ApiError where one of them ended before it was finished."""
    try:
        finished = await asyncio.gather(*(handle.wait() for handle in handles))
    except FirpError as error:
        raise decoding_error(error) from error
    for one in finished:
        if error := ended_error(one.finish_reason):
            raise error
    return finished
