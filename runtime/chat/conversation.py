"""A conversation: turns on one session, whose cache goes on from turn to turn.

In: what a user says, turn by turn. Out: the answers as they come. A turn computes only tokens that
the cache does not hold: the longest common prefix of what is cached and what the template makes of
all messages is kept, whatever the template changes about earlier turns.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer

from firp.runtime.chat.messages import check_messages
from firp.runtime.drafters.interface import Drafter
from firp.runtime.errors import ContextFullError
from firp.runtime.grammar.walk import Walk
from firp.runtime.loop.decode import decode
from firp.runtime.loop.generation import Chunk, Stats
from firp.runtime.loop.picker import Picker
from firp.runtime.loop.stream import stream_chunks
from firp.runtime.passes.pass_plan import PREFILL_ROWS
from firp.runtime.passes.request import Needs, Request
from firp.runtime.passes.session import Session
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import TreeConfig

FIRST_CAPACITY = 1024  # tokens of a first session, where the context has as many


class Decoder(Protocol):
    """What a conversation needs of an `Engine`, which stands above it."""

    tokenizer: Tokenizer | None
    context: int  # tokens that a session holds at most

    def request(self, prompt: Any, params: SamplingParams | None = None) -> Request: ...

    def needs(self, request: Request, tree: TreeConfig | None) -> Needs: ...

    def drafter(
        self,
        tree: TreeConfig | None,
        greedy: bool = True,
        guarded: bool = False,
        walk: Walk | None = None,
    ) -> Drafter: ...

    def session(self, capacity: int, rows: int = PREFILL_ROWS) -> Session: ...


class Conversation:
    """Turns of a user and the model; made by `Engine.conversation`, for one caller.

    `messages` holds what was said so far, and may be changed between turns; `session` is the one that
    turns run on, None before the first.
    """

    def __init__(
        self,
        decoder: Decoder,
        params: SamplingParams,
        system: str | None,
        tree: TreeConfig | None,
        guarded: bool,
        variables: Mapping[str, Any],
    ):
        self._decoder = decoder
        self._params = params
        self._system = system
        self._tree = tree
        self._guarded = guarded  # whether drafts stop while they lose
        self._variables = variables  # of the chat template
        self.session: Session | None = None
        self._turn: Iterator[Chunk] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what was said, but not the system message."""
        self._end_turn()
        self.messages: list[Mapping[str, Any]] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})
        self._finished: list[Stats] = []

    @property
    def stats(self) -> Stats:
        """Costs of all turns since the last reset; `reused_tokens` is what the cache saved."""
        return Stats.total(self._finished)

    @property
    def turns(self) -> int:
        """Turns since the last reset."""
        return len(self._finished)

    @property
    def cached_tokens(self) -> int:
        """Tokens that the cache holds."""
        return len(self.session.tokens) if self.session else 0

    def send(self, text: str, cancel: threading.Event | None = None) -> Iterator[Chunk]:
        """Yield the answer as it comes, like `Engine.stream`; message and answer join `messages`.

        An answer that the caller stops listening to, or cancels, stays as far as it came; a turn
        that is still open is ended first. Raises FirpError at once, and keeps nothing, for what
        cannot be answered: ContextFullError where the conversation has become too long.
        """
        self._end_turn()
        messages = [*self.messages, {"role": "user", "content": text}]
        request = self._request(messages)
        session = self._session_for(request)
        self._turn = self._answer(messages, request, session, cancel)
        return self._turn

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.close()
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

    def _session_for(self, request: Request) -> Session:
        """The session, or one of twice the size, with an empty cache, where it became too small."""
        needs = self._decoder.needs(request, self._tree)
        capacity = min(needs.capacity, self._decoder.context)
        if self.session is None or self.session.kv.capacity < capacity:
            self.session = None  # its memory is free before more is taken
            capacity = min(max(2 * capacity, FIRST_CAPACITY), self._decoder.context)
            self.session = self._decoder.session(capacity, max(PREFILL_ROWS, needs.rows))
        return self.session

    def _answer(
        self,
        messages: list[Mapping[str, Any]],
        request: Request,
        session: Session,
        cancel: threading.Event | None,
    ) -> Iterator[Chunk]:
        greedy = request.params.temperature == 0
        drafter = self._decoder.drafter(self._tree, greedy, self._guarded, request.walk())
        steps = decode(session, request, drafter, Picker(request), reuse=True)
        stats = Stats(prompt_tokens=len(request.prompt))
        text = ""
        try:
            for chunk in stream_chunks(request, steps, self._decoder.tokenizer, cancel):
                text += chunk.text or ""
                stats = chunk.stats
                yield chunk
        finally:
            steps.close()
            self.messages = [*messages, {"role": "assistant", "content": text}]
            self._finished.append(stats)
