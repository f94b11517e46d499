"""A request on its way through the engine: waiting, prefilled, decoding.

In: what was asked for, and the steps of the engine. Out: chunks in its handle. It belongs to the
engine's thread once it is submitted.
"""

import threading
import time
from collections.abc import Mapping

from tokenizers import Tokenizer

from firp.runtime.drafters.guard import Guard
from firp.runtime.drafters.interface import Drafter
from firp.runtime.drafters.plain import PlainDrafter
from firp.runtime.errors import FirpError, foreign_errors
from firp.runtime.loop.decode import Step, StepTimes
from firp.runtime.loop.decoding import Decoding
from firp.runtime.loop.generation import Chunk
from firp.runtime.loop.picker import Picker
from firp.runtime.loop.stream import ChunkStream
from firp.runtime.passes.pass_plan import Pass, PassPlan
from firp.runtime.passes.request import Needs, Request
from firp.runtime.passes.session import Session
from firp.runtime.scheduling.handle import Handle


class Job:
    """One request. guarded: whether drafts stop while they lose;
    deadline_s: seconds from now, those in the queue too; cancel: somebody else's wish to end it.
    """

    def __init__(
        self,
        request: Request,
        needs: Needs,
        drafter: Drafter,
        picker: Picker,
        guarded: bool,
        handle: Handle,
        tokenizer: Tokenizer | None,
        deadline_s: float | None,
        cancel: threading.Event | None,
    ):
        self.request = request
        self.needs = needs
        self.drafts = not isinstance(drafter, PlainDrafter)  # whether it has any
        self.guard = Guard() if guarded else None
        self.trust = 1.0  # accepted over promised drafts lately
        self.handle = handle
        self.submitted_at = time.perf_counter()
        self.decoding: Decoding | None = None
        self.last_tokens_at = self.submitted_at
        self.accepted: list[str] = []  # drafters of the drafts that the last pass accepted, by depth
        self._drafter = drafter
        self._picker = picker
        self._stream = ChunkStream(request, tokenizer)
        self._deadline = None if deadline_s is None else self.submitted_at + deadline_s
        self._cancel = cancel
        self._prefill_ms = 0.0

    @property
    def why_to_end(self) -> str | None:
        """Why it should end before its text does: "cancelled" or "deadline". Raises FirpError where the
        caller's `cancel` fails, as an event does whose process has ended.
        """
        with foreign_errors(lambda reason: FirpError("cancel fails", got=reason)):
            if self.handle.cancelled or (self._cancel is not None and self._cancel.is_set()):
                return "cancelled"
        late = self._deadline is not None and time.perf_counter() >= self._deadline
        return "deadline" if late else None

    @property
    def tokens(self) -> int:
        """Tokens emitted so far."""
        return len(self.decoding.sequence.tokens) - len(self.request.prompt) if self.decoding else 0

    def start(self, session: Session) -> None:
        """Begin in a session, with what it holds of the prompt."""
        self.decoding = Decoding(session, self.request, self._drafter, self._picker, reuse=True)

    def take(
        self, plan: PassPlan, result: Pass, graph_ms: Mapping[str, float], copies_ms: float, ms: float
    ) -> Chunk | None:
        """Keep what a pass decided; return what it adds, None where that is no token. Times are those of
        the whole pass.
        """
        accepted = self.decoding.take(plan, result)
        tokens = accepted.tokens
        reused, rows = 0, len(plan.tree.tokens)
        if plan.prompt:
            self._prefill_ms += ms
        if not tokens:
            return None
        if plan.prompt:
            ms, rows, reused = self._prefill_ms, 0, self.decoding.reused_tokens
        times = StepTimes(dict(graph_ms), copies_ms, ms)
        self.accepted = accepted.drafters(plan.tree)
        finish_reason = self.decoding.finish_reason
        prompt_logprobs = self.decoding.prompt_logprobs if plan.prompt else None
        step = Step(
            *(tokens, rows, self.accepted, finish_reason, times, reused),
            *(accepted.logprobs, prompt_logprobs),
        )
        return self._stream.add(step)

    @property
    def finished(self) -> bool:
        """Whether its text has come to its end."""
        return self._stream.finish_reason is not None

    def close(self, reason: str | None = None) -> Chunk:
        """The closing chunk. reason: where the text did not end."""
        return self._stream.close(reason)
