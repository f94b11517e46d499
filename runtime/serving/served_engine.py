"""The engine as the endpoints see it: names of the model, prompts, requests on their way.

In: token ids and sampling params. Out: handles, which are cancelled when their client leaves.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from firp.runtime.chat.tool_calls import ToolFamily, tool_family
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.handle import Handle
from firp.runtime.serving.api.token_text import TokenText
from firp.runtime.serving.errors import ApiError, context_error, engine_error
from firp.runtime.serving.settings import ServerSettings

_LARGE_BYTES = 65536  # of a request's body: a text of so many is tokenized in a tenth of a second


class ServedEngine:
    """One engine behind its names. `created`: when its bundle was written, in seconds of Unix time."""

    def __init__(self, engine: Engine, settings: ServerSettings):
        self.engine = engine
        self.settings = settings
        self.names = settings.served_model_name or (engine.bundle.path.resolve().name,)
        self.created = int(engine.bundle.path.stat().st_mtime)
        self.tokens = TokenText(engine.tokenizer) if engine.tokenizer else None
        self.handles: set[Handle] = set()
        self._large = asyncio.Semaphore(1)

    def check_model(self, name: str | None) -> str:
        """The name that an answer carries. Raises ApiError for that of another model."""
        if name is not None and name not in self.names:
            message = f"The model '{name:.200}' does not exist. This server has '{self.names[0]}'."
            raise ApiError(404, message, "model", "model_not_found")
        return name or self.names[0]

    @functools.cached_property
    def tool_family(self) -> ToolFamily | None:
        """How the model writes calls of tools; None where its template has none."""
        return tool_family(self.engine.chat_encoder.template.source(for_tools=True))

    def special_token(self, text: str) -> int | None:
        """The id of a token that is no text; None where there is none of this name."""
        token = self.engine.tokenizer.token_to_id(text)
        added = self.engine.tokenizer.get_added_tokens_decoder()
        return token if token in added and added[token].special else None

    def answer_tokens(self, prompt: Sequence[int], asked: int | None, param: str) -> int:
        """Tokens that an answer may have. asked: None for as many as this server gives. Raises ApiError
        for more than the context, or this server, takes.
        """
        context, most = self.engine.context, self.settings.max_tokens
        if most is not None and asked is not None and asked > most:
            message = f"Invalid 'max_tokens': this server takes at most {most}, got {asked}."
            raise ApiError(400, message, "max_tokens", "invalid_value")
        if len(prompt) + (asked or 1) > context:
            raise context_error(context, len(prompt), asked or 1, param)
        return asked or min(context - len(prompt), most or context, self.settings.default_max_tokens)

    async def read(self, read: Callable[[Any, "ServedEngine"], Any], body: Any, request: Request) -> Any:
        """What a request's body asks for, by `read`, in a thread; None where its client has left. Large
        ones wait for each other, since tokenizing takes a hundred times their memory, and seconds.
        """
        large = len(await request.body()) > _LARGE_BYTES
        if large:  # uvicorn stopped reading behind so much; asked, it goes on, and sees its client leave
            await request.is_disconnected()
        async with self._large if large else nullcontext():
            if large and await request.is_disconnected():
                return None
            return await run_in_threadpool(read, body, self)

    async def submit(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        samples: int,
        deadline_s: float | None,
        request_id: str,
        param: str,
        form: str | None,
    ) -> list[Handle]:
        """Handles of all samples of all prompts, in order: all or none. Sample i has the seed + i.
        request_id: each has it, and its own number; param, form: the fields that prompts, and the
        form of the answer, came in. Raises ApiError.
        """
        if (count := len(prompts) * samples) > (most := self.settings.max_samples):
            message = f"Invalid 'n': this server gives at most {most} answers to a request, got {count}."
            raise ApiError(400, message, "n", "invalid_value")
        handles: list[Handle] = []

        def submit_all() -> None:
            options = {"plain": self.settings.plain, "deadline_s": deadline_s}
            for prompt, rules in zip(prompts, params, strict=True):
                for sample in range(samples):
                    own_id = f"{request_id}-{len(handles)}"
                    own = rules.sample(sample)
                    handles.append(self.engine.submit(prompt, own, request_id=own_id, **options))

        try:
            await run_in_threadpool(submit_all)
        except BaseException as error:
            for handle in handles:
                handle.cancel()
            if isinstance(error, FirpError):
                raise engine_error(error, param, form) from error
            raise
        return handles

    @asynccontextmanager
    async def running(self, handles: Sequence[Handle], request: Request) -> AsyncIterator[None]:
        """Around the use of handles: whatever ends it, and a client that leaves, cancels them."""
        self.handles.update(handles)
        watch = asyncio.create_task(_cancel_when_gone(handles, request))
        try:
            yield
        finally:
            watch.cancel()
            for handle in handles:
                handle.cancel()
            self.handles.difference_update(handles)

    def cancel_all(self) -> None:
        """Cancel every request that is on its way."""
        for handle in list(self.handles):
            handle.cancel()


async def _cancel_when_gone(handles: Sequence[Handle], request: Request) -> None:
    message: dict[str, Any] = {}
    while message.get("type") != "http.disconnect":
        message = await request.receive()
    for handle in handles:
        handle.cancel()
