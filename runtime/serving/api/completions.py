"""/v1/completions: texts or token ids in, what follows them out, whole or as it comes.

In: a `CompletionRequest`. Out: a JSON object, or a stream of its chunks.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from firp.runtime.loop.generation import Chunk, Generation
from firp.runtime.picking.logprobs import TokenLogprob
from firp.runtime.scheduling.handle import Handle
from firp.runtime.serving.api.answers import Envelope, Usage
from firp.runtime.serving.api.fields import CompletionRequest
from firp.runtime.serving.api.logprobs import FirstToken, completion_logprobs, prompt_and_answer
from firp.runtime.serving.api.reading import Asked
from firp.runtime.serving.api.streams import merged
from firp.runtime.serving.api.whole import results
from firp.runtime.serving.errors import ended_error
from firp.runtime.serving.served_engine import ServedEngine


class CompletionAnswer:
    """One answer to a request, with the handles of all samples of all prompts."""

    def __init__(
        self,
        service: ServedEngine,
        request: CompletionRequest,
        asked: Asked,
        handles: Sequence[Handle],
        head: Envelope,
    ):
        self._service = service
        self._request = request
        self._asked = asked
        self._handles = handles
        self._head = head
        self._usage = Usage(sum(map(len, asked.prompts)))
        self._answers = request.max_tokens > 0  # else the prompt alone is asked for

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece. Raises ApiError for one that was ended before."""
        finished = await results(self._handles)
        for one in finished:
            self._usage.add(len(one.token_ids) if self._answers else 0, one.stats)
        return self._head.whole([self._choice(i, one) for i, one in enumerate(finished)], self._usage)

    def _prompt(self, index: int) -> list[int]:
        return self._asked.prompts[index // self._request.n]

    def _echo(self, index: int) -> str:
        """The text of the prompt, where it is asked for."""
        if not self._request.echo:
            return ""
        given = self._request.prompt
        if isinstance(given, str):
            return given
        one = given[index // self._request.n]
        if isinstance(one, str):
            return one
        tokenizer = self._service.engine.tokenizer
        return tokenizer.decode(self._prompt(index), skip_special_tokens=False) if tokenizer else ""

    def _choice(self, index: int, one: Generation) -> dict[str, Any]:
        choice = {
            "index": index,
            "text": self._echo(index) + ((one.text or "") if self._answers else ""),
            "logprobs": self._logprobs(index, one),
            "finish_reason": one.finish_reason if self._answers else "length",
        }
        if self._request.return_token_ids:
            ids = one.token_ids if self._answers else []
            choice |= {"token_ids": ids, "prompt_token_ids": self._prompt(index)}
        return choice

    def _logprobs(self, index: int, one: Generation) -> dict[str, Any] | None:
        if self._request.logprobs is None:
            return None
        found = one.logprobs if self._answers else None
        if self._request.echo:
            found = prompt_and_answer(self._prompt(index), one.prompt_logprobs, found)
        return completion_logprobs(found or (), self._service.tokens, self._request.logprobs)

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The answer as it comes. Raises ApiError for one that is ended before."""
        begun = [_Begun() for _ in self._handles]
        async for index, chunk in merged(self._handles):
            if error := ended_error(chunk.finish_reason):
                raise error
            for choice in self._pieces(index, chunk, begun[index]):
                yield self._head.chunk([choice])
            if chunk.finish_reason:
                self._usage.add(begun[index].tokens if self._answers else 0, chunk.stats)
        if self._head.with_usage:
            yield self._head.chunk([], usage=self._usage.json)

    def _pieces(self, index: int, chunk: Chunk, begun: "_Begun") -> list[dict[str, Any]]:
        """What a chunk of the engine adds to a choice; before the first one, the prompt."""
        pieces = []
        if self._request.echo and not begun.echoed:
            begun.echoed = True
            found = prompt_and_answer(self._prompt(index), chunk.prompt_logprobs, None)
            pieces.append(self._piece(index, self._echo(index), found, begun))
        begun.tokens += len(chunk.token_ids)
        reason = chunk.finish_reason if self._answers else chunk.finish_reason and "length"
        if not self._answers:
            return [*pieces, self._piece(index, "", (), begun, reason)] if reason else pieces
        piece = self._piece(index, chunk.text or "", chunk.logprobs or (), begun, reason)
        if self._request.return_token_ids and chunk.token_ids:
            piece["token_ids"] = chunk.token_ids
        if piece["text"] or piece["logprobs"] or reason or "token_ids" in piece:
            pieces.append(piece)
        return pieces

    def _piece(
        self,
        index: int,
        text: str,
        found: Sequence[TokenLogprob | FirstToken],
        begun: "_Begun",
        reason: str | None = None,
    ) -> dict[str, Any]:
        logprobs = None
        if self._request.logprobs is not None and found:
            top = self._request.logprobs
            logprobs = completion_logprobs(found, self._service.tokens, top, begun.characters)
            begun.characters += sum(map(len, logprobs["tokens"]))
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


@dataclass
class _Begun:
    """How far a choice has come."""

    echoed: bool = False
    tokens: int = 0
    characters: int = 0  # of tokens whose log-probabilities are out
