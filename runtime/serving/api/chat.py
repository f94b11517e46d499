"""/v1/chat/completions: messages in, an answer out, whole or as it comes.

In: a `ChatRequest`. Out: a JSON object, or a stream of its chunks.
"""

import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from firp.runtime.chat.tool_reader import CallPiece, ToolReader
from firp.runtime.loop.generation import Chunk, Generation
from firp.runtime.picking.logprobs import TokenLogprob
from firp.runtime.scheduling.handle import Handle
from firp.runtime.serving.api.answers import Envelope, Usage, call_delta, whole_calls
from firp.runtime.serving.api.fields import ChatRequest
from firp.runtime.serving.api.logprobs import chat_logprobs
from firp.runtime.serving.api.reading import Asked
from firp.runtime.serving.api.streams import merged
from firp.runtime.serving.api.whole import results
from firp.runtime.serving.errors import ended_error
from firp.runtime.serving.served_engine import ServedEngine


class ChatAnswer:
    """One answer to a request, with the handles of its samples."""

    def __init__(
        self,
        service: ServedEngine,
        request: ChatRequest,
        asked: Asked,
        handles: Sequence[Handle],
        head: Envelope,
    ):
        self._service = service
        self._request = request
        self._asked = asked
        self._handles = handles
        self._head = head
        self._usage = Usage(len(asked.prompts[0]))

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece. Raises ApiError for one that was ended before."""
        finished = await results(self._handles)
        for one in finished:
            self._usage.add(len(one.token_ids), one.stats)
        choices = [self._choice(index, one) for index, one in enumerate(finished)]
        ids = {"prompt_token_ids": self._asked.prompts[0]} if self._request.return_token_ids else {}
        return self._head.whole(choices, self._usage, **ids)

    def _choice(self, index: int, one: Generation) -> dict[str, Any]:
        said = _Said(self._request, self._asked)
        text, calls = said.take(one.text or "", end=True)
        message = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if calls:
            message["tool_calls"] = whole_calls(calls)
        choice = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(one.logprobs),
            "finish_reason": said.reason(one.finish_reason),
        }
        return {**choice, "token_ids": one.token_ids} if self._request.return_token_ids else choice

    def _logprobs(self, found: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        return chat_logprobs(found or (), self._service.tokens) if self._request.logprobs else None

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The answer as it comes. Raises ApiError for one that is ended before."""
        said = [_Said(self._request, self._asked) for _ in self._handles]
        counts = [0] * len(said)
        ids = {"prompt_token_ids": self._asked.prompts[0]} if self._request.return_token_ids else {}
        begin = {"role": "assistant", "content": "", "refusal": None}
        for index in range(len(said)):
            yield self._head.chunk([self._delta(index, begin)], **ids)
        async for index, chunk in merged(self._handles):
            counts[index] += len(chunk.token_ids)
            for choice in self._pieces(index, chunk, said[index]):
                yield self._head.chunk([choice])
            if chunk.finish_reason:
                self._usage.add(counts[index], chunk.stats)
        if self._head.with_usage:
            yield self._head.chunk([], usage=self._usage.json)

    def _pieces(self, index: int, chunk: Chunk, said: "_Said") -> list[dict[str, Any]]:
        """What a chunk of the engine adds to a choice: text, parts of calls, the end."""
        if error := ended_error(chunk.finish_reason):
            raise error
        text, calls = said.take(chunk.text or "", end=chunk.finish_reason is not None)
        more = {}
        if self._request.logprobs and chunk.token_ids:
            more["logprobs"] = self._logprobs(chunk.logprobs)
        if self._request.return_token_ids and chunk.token_ids:
            more["token_ids"] = chunk.token_ids
        pieces = []
        if text or more:
            pieces.append({**self._delta(index, {"content": text}), **more})
        pieces += [self._delta(index, {"tool_calls": [call]}) for call in calls]
        if chunk.finish_reason:
            pieces.append(self._delta(index, {}, said.reason(chunk.finish_reason)))
        return pieces

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


class _Said:
    """What one sample has said, and called."""

    def __init__(self, request: ChatRequest, asked: Asked):
        self._reader = ToolReader(asked.family, asked.functions) if asked.family else None
        self._most = None if request.parallel_tool_calls else 1
        self._calls = 0

    def take(self, text: str, end: bool) -> tuple[str, list[dict[str, Any]]]:
        """Text that is no call, and deltas of calls."""
        if self._reader is None:
            return text, []
        said = self._reader.push(text)
        rest = self._reader.finish() if end else None
        found = said.calls + (rest.calls if rest else [])
        return said.text + (rest.text if rest else ""), [
            self._delta(piece) for piece in found if self._takes(piece)
        ]

    def _takes(self, piece: CallPiece) -> bool:
        return self._most is None or piece.number < self._most

    def _delta(self, piece: CallPiece) -> dict[str, Any]:
        if piece.name is None:
            return call_delta(piece.number, piece.arguments)
        self._calls += 1
        # nine letters and digits: the only ids that Mistral's templates take
        return call_delta(piece.number, piece.arguments, piece.name, secrets.token_hex(5)[:9])

    def reason(self, reason: str | None) -> str | None:
        """Why an answer ended, in OpenAI's words."""
        return "tool_calls" if reason == "stop" and self._calls else reason
