"""Ways to wait for a request: as a stream or as a whole, of text or of messages, in a thread or in an
event loop.

In: what `submit` takes. Out: `Chunk`s, or a `Generation`. Whoever stops listening ends the request.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from firp.runtime.arguments import TEXT, checked, whole
from firp.runtime.chat.messages import check_messages
from firp.runtime.loop.generation import Chunk, Generation, collect
from firp.runtime.requests import PARAMS, Prompt
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.handle import Following, Handle

Messages = Sequence[Mapping[str, Any]]


class Calls(ABC):
    """What follows from `submit`."""

    @abstractmethod
    def submit(self, prompt: Prompt, params: SamplingParams | None = None, **options) -> Handle:
        """Begin to decode a request."""

    def submit_samples(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        n: int = 1,
        *,
        request_id: str | None = None,
        **options,
    ) -> list[Handle]:
        """Begin `n` requests that differ in their seeds: params.seed, + 1, ...  request_id: theirs are
        made of it, with -0, -1, ...; `options`: as for `submit`.
        """
        count = checked("n", n, whole(1))
        params = checked("params", params, PARAMS) or SamplingParams()
        checked("request_id", request_id, TEXT.or_none())
        handles = []
        try:
            for place in range(count):
                name = request_id and f"{request_id}-{place}"
                handles.append(self.submit(prompt, params.sample(place), request_id=name, **options))
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return handles

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **options) -> Iterator[Chunk]:
        """Yield what each step adds, then a closing chunk with the finish reason. `options`: as for
        `submit`, which also says what is raised, at once.
        """
        return Following(self.submit(prompt, params, **options))

    def generate(self, prompt: Prompt, params: SamplingParams | None = None, **options) -> Generation:
        """Decode one request to its end. `options`: as for `submit`."""
        return collect(self.stream(prompt, params, **options))

    def generate_samples(
        self, prompt: Prompt, params: SamplingParams | None = None, n: int = 1, **options
    ) -> list[Generation]:
        """`submit_samples`, to their ends."""
        handles = self.submit_samples(prompt, params, n, **options)
        try:
            return [handle.result() for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()

    async def agenerate_samples(
        self, prompt: Prompt, params: SamplingParams | None = None, n: int = 1, **options
    ) -> list[Generation]:
        """`generate_samples`, in an event loop."""
        handles = self.submit_samples(prompt, params, n, **options)
        try:
            return [await handle.wait() for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()

    async def astream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options
    ) -> AsyncIterator[Chunk]:
        """`stream`, in an event loop."""
        handle = self.submit(prompt, params, **options)
        try:
            async for chunk in handle:
                yield chunk
        finally:
            handle.cancel()

    async def agenerate(self, prompt: Prompt, params: SamplingParams | None = None, **options) -> Generation:
        """`generate`, in an event loop."""
        handle = self.submit(prompt, params, **options)
        try:
            return await handle.wait()
        finally:
            handle.cancel()

    def stream_chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        tools: Messages | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options,
    ) -> Iterator[Chunk]:
        """Stream the answer to messages: dicts of "role" and "content". chat_template_kwargs: what the
        chat template may read besides, such as enable_thinking; `options`: as for `submit`. Raises
        PromptError at once for messages that are none, and where there is no chat template.
        """
        return self.stream(check_messages(messages, chat_template_kwargs), params, tools=tools, **options)

    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        tools: Messages | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options,
    ) -> Generation:
        """Answer messages, as `stream_chat` does, to the end."""
        return collect(self.stream_chat(messages, params, tools, chat_template_kwargs, **options))

    def astream_chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        tools: Messages | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options,
    ) -> AsyncIterator[Chunk]:
        """`stream_chat`, in an event loop."""
        return self.astream(check_messages(messages, chat_template_kwargs), params, tools=tools, **options)

    async def achat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        tools: Messages | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options,
    ) -> Generation:
        """`chat`, in an event loop."""
        prompt = check_messages(messages, chat_template_kwargs)
        return await self.agenerate(prompt, params, tools=tools, **options)
