"""A conversation: turns of a user and the model, one request of the engine each.

In: what a user says, turn by turn. Out: the answers as they come. A turn computes only tokens that
the engine's cache does not hold: the longest common prefix of what is cached and what the template
makes of all messages is kept, whatever the template changes about earlier turns.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from firp.runtime.arguments import PATH, checked, whole
from firp.runtime.chat.messages import check_messages
from firp.runtime.errors import ContextFullError, SessionBusyError
from firp.runtime.loop.generation import Chunk, Stats
from firp.runtime.passes.request import Request
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig


class Decoder(Protocol):
    """What a conversation needs of an `Engine`, which stands above it."""

    context: int  # tokens that a session holds at most

    def encode(self, prompt: Any) -> list[int]: ...

    def request(self, prompt: Any, params: SamplingParams | None = None) -> Request: ...

    def stream(self, prompt: Any, params: SamplingParams | None = None, **options) -> Iterator[Chunk]: ...

    def save_prefix(self, prompt: Any, path: Path, notes: Sequence[Mapping[str, Any]]) -> int: ...


class Conversation:
    """Turns of a user and the model; made by `Engine.conversation`, for one caller.

    `messages` holds what was said so far, and may be changed between turns.
    """

    def __init__(
        self,
        decoder: Decoder,
        params: SamplingParams,
        system: str | None,
        plain: bool,
        tree: TreeConfig | None,
        variables: Mapping[str, Any],
    ):
        self._decoder = decoder
        self._params = params
        self._system = system
        self._options = {"plain": plain, "tree": tree}
        self._variables = variables  # of the chat template
        self._turn: Iterator[Chunk] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what was said, but not the system message."""
        self._end_turn()
        self.messages: list[Mapping[str, Any]] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})
        self._finished: list[Stats] = []
        self._lengths: list[int] = []  # tokens of the conversation at the end of each turn that ran here

    @property
    def stats(self) -> Stats:
        """Costs of all turns that ran here since the last reset, those taken back too, but none of those
        that were restored; `reused_tokens` is what the cache saved.
        """
        return Stats.total(self._finished)

    @property
    def turns(self) -> int:
        """Turns that `messages` holds: what the user said so often."""
        return sum(message["role"] == "user" for message in self.messages)

    @property
    def tokens(self) -> int:
        """Tokens of the conversation at the end of its last turn, prompt and answers; 0 before the first.
        Of turns that were restored: what the template makes of them.
        """
        if self._lengths or not self.turns:
            return self._lengths[-1] if self._lengths else 0
        with contextlib.suppress(ContextFullError):
            return len(self._decoder.encode(check_messages(self.messages, self._variables)))
        return self._decoder.context

    def save(self, path: Path | str) -> int:
        """Write the messages, and what the cache holds of them, to a file from which
        `Engine.conversation` goes on; nothing where there are none. Returns the tokens whose keys and
        values it holds; a warning is logged where the cache has none. Raises FirpError when it cannot be
        written.
        """
        path = checked("path", path, PATH)
        self._end_turn()
        if not self.messages:
            return 0
        said = check_messages(self.messages, self._variables)
        return self._decoder.save_prefix(said, path, self.messages)

    def rewind(self, turns: int = 1) -> None:
        """Forget the last turns, of the user and the model; the cache keeps what comes before them."""
        self._end_turn()
        asked = [place for place, message in enumerate(self.messages) if message["role"] == "user"]
        count = checked("turns", turns, whole(1, max(len(asked), 1)))
        del self.messages[asked[-count] if asked else 0 :]
        del self._lengths[max(0, len(self._lengths) - count) :]

    def send(self, text: str, cancel: threading.Event | None = None) -> Iterator[Chunk]:
        """Yield the answer as it comes, like `Engine.stream`; message and answer join `messages`.

        An answer that the caller stops listening to, or cancels, stays as far as it came; a turn
        that is still open is ended first. Raises FirpError at once, and keeps nothing, for what
        cannot be answered: ContextFullError where the conversation has become too long,
        SessionBusyError where another thread is in it.
        """
        self._end_turn()
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = len(self._request(messages).prompt)
        params = replace(
            self._params, max_new_tokens=min(self._params.max_new_tokens, self._decoder.context - prompt)
        )
        chunks = self._decoder.stream(
            check_messages(messages, self._variables), params, cancel=cancel, **self._options
        )
        self._turn = self._answer(messages, chunks, prompt)
        return self._turn

    def _end_turn(self) -> None:
        if self._turn is not None:
            try:
                self._turn.close()
            except ValueError as error:  # of a generator that another thread runs
                fix = "make a conversation for each caller"
                raise SessionBusyError("the conversation answers another caller", fix=fix) from error
            self._turn = None

    def _request(self, messages: Sequence[Mapping[str, Any]]) -> Request:
        fix = "reset the conversation (/reset)"
        try:
            request = self._decoder.request(check_messages(messages, self._variables), self._params)
        except ContextFullError as error:
            raise error.with_fix(ContextFullError, fix) from error
        if len(request.prompt) >= self._decoder.context:
            got, most = f"{len(request.prompt)} tokens", f"at most {self._decoder.context - 1}"
            raise ContextFullError("prompt longer than the context", got=got, expected=most, fix=fix)
        return request

    def _answer(
        self, messages: list[Mapping[str, Any]], chunks: Iterator[Chunk], prompt: int
    ) -> Iterator[Chunk]:
        stats = Stats(prompt_tokens=prompt)
        text = ""
        tokens = prompt
        try:
            for chunk in chunks:
                text += chunk.text or ""
                stats = chunk.stats
                tokens += len(chunk.token_ids)
                yield chunk
        finally:
            chunks.close()
            self.messages = [*messages, {"role": "assistant", "content": text}]
            self._finished.append(stats)
            self._lengths.append(tokens)
