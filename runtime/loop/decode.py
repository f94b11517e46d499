"""The loop of one request: prefill → propose → run → accept → commit.

In: a `Session`, a `Request`, a `Drafter`. Out: a `Step` for every pass, with the tokens it emitted.
Drafted decoding emits the tokens that plain decoding emits: the tree decides only how many of them
come from one pass.
"""

import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from firp.runtime.drafters.interface import Drafter
from firp.runtime.loop.decoding import Decoding
from firp.runtime.loop.picker import Picker
from firp.runtime.passes.batch import COPIES
from firp.runtime.passes.request import Request
from firp.runtime.passes.session import Session
from firp.runtime.picking.logprobs import TokenLogprob


class StepTimes(NamedTuple):
    """Milliseconds of one step."""

    graph_ms: dict[str, float]  # in each graph, by its name
    copies_ms: float  # of masks, indices and accepted rows; a commit counts in the step after
    total_ms: float

    @property
    def outside_ms(self) -> float:
        """Spent in the loop itself, copies included: trees, masks, bindings, picks, commits."""
        return self.total_ms - sum(self.graph_ms.values())


class Step(NamedTuple):
    """One decoding step. The first step of a sequence is its prefill: one token, no tree."""

    tokens: list[int]  # emitted by this step: the accepted drafts and the bonus token
    rows: int  # T: tree nodes that were verified; 0 for the prefill
    accepted: list[str]  # drafters of the accepted drafts, from depth 1 on
    finish_reason: str | None  # set in the last step: "stop" or "length"
    times: StepTimes
    reused_tokens: int = 0  # of the prompt, that the cache held already; in the first step
    logprobs: list[TokenLogprob] | None = None  # of the tokens
    prompt_logprobs: list[TokenLogprob | None] | None = None  # of the prompt's, in the first step

    @property
    def accept_length(self) -> int:
        """Accepted drafts, the bonus token not counted."""
        return len(self.accepted)


def decode(
    session: Session, request: Request, drafter: Drafter, picker: Picker, reuse: bool = False
) -> Iterator[Step]:
    """Decode one request to its end: a token that ends the text, its limit, or the session's
    capacity. The consumer may stop at any time.

    reuse: keep what the session has cached, as far as the prompt begins with the same tokens.
    """
    with session.exclusive():
        clock = StepClock(session.spent_ms)
        decoding = Decoding(session, request, drafter, picker, reuse)
        while decoding.prefilling:
            plan = decoding.next_piece(session.prefill_rows)
            first = decoding.take(plan, session.forward(plan))
        yield Step(
            *(first.tokens, 0, [], decoding.finish_reason, clock.lap(), decoding.reused_tokens),
            *(first.logprobs, decoding.prompt_logprobs),
        )
        while decoding.finish_reason is None:
            clock.start()
            plan = decoding.propose()
            accepted = decoding.take(plan, session.forward(plan))
            if not accepted.tokens:
                continue
            yield Step(
                *(accepted.tokens, len(plan.tree.tokens), accepted.drafters(plan.tree)),
                *(decoding.finish_reason, clock.lap(), 0, accepted.logprobs),
            )


class StepClock:
    """Times one step; what the consumer does between two steps is not counted. spent_ms: of a batch."""

    def __init__(self, spent_ms: Mapping[str, float]):
        self._spent_ms = spent_ms
        self.start()

    def start(self) -> None:
        """Begin a step."""
        self._began = time.perf_counter()
        self._before = dict(self._spent_ms)

    def lap(self) -> StepTimes:
        """End a step; return its times."""
        spent = {name: ms - self._before[name] for name, ms in self._spent_ms.items()}
        copies_ms = spent.pop(COPIES)
        return StepTimes(spent, copies_ms, (time.perf_counter() - self._began) * 1e3)
