"""The loop: prefill → propose → run → accept → commit.

In: a `Session`, a `Request`, a `Drafter`. Out: a `Step` for every pass, with the tokens it emitted.
Drafted decoding emits the tokens that plain decoding emits: the tree decides only how many of them
come from one pass.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

from firp.runtime.drafters.interface import Drafter
from firp.runtime.loop.accept import accept, pick_at
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.passes.request import Request
from firp.runtime.passes.sequence import Sequence
from firp.runtime.passes.session import COPIES, Session
from firp.runtime.sampling import Picker
from firp.runtime.trees.tree import chain


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
    accept_length: int  # accepted drafts, the bonus token not counted
    finish_reason: str | None  # set in the last step: "stop" or "length"
    times: StepTimes
    reused_tokens: int = 0  # of the prompt, that the cache held already; in the first step


def decode(
    session: Session, request: Request, drafter: Drafter, picker: Picker, reuse: bool = False
) -> Iterator[Step]:
    """Decode one request to its end: a token that ends the text, its limit, or the session's
    capacity. The consumer may stop at any time.

    reuse: keep what the session has cached, as far as the prompt begins with the same tokens.
    """
    with session.exclusive():
        sequence = Sequence(request, session.kv.capacity)
        logits = session.memory.free_reads or picker.needs_logits
        clock = _Clock(session)
        known = session.known_prefix(sequence.tokens) if reuse else 0
        session.rewind(known)
        prefill(session, sequence, drafter, picker, logits)
        yield Step(sequence.tokens[-1:], 0, 0, sequence.finish_reason, clock.lap(), known)
        while sequence.finish_reason is None:
            clock.start()
            # a step emits one token more than it accepts
            proposal = drafter.propose(sequence, session, sequence.remaining - 1)
            result = session.forward(PassPlan(*proposal, bring_logits=logits))
            accepted = accept(proposal.tree, result, sequence, picker)
            session.commit(accepted.rows)
            drafter.observe(accepted.rows, result)
            sequence.extend(accepted.tokens)
            accept_length = len(accepted.rows) - 1
            rows = len(proposal.tree.tokens)
            yield Step(accepted.tokens, rows, accept_length, sequence.finish_reason, clock.lap())


def prefill(session: Session, sequence: Sequence, drafter: Drafter, picker: Picker, logits: bool) -> None:
    """Fill the cache with what it lacks of the prompt, in as few passes as fit, and emit the first
    token. logits: whether to bring those of its last row to the host.
    """
    prompt = sequence.tokens
    offsets = drafter.prompt_offsets if sequence.remaining > 1 else 0
    for start in range(session.kv.length, len(prompt), session.prefill_rows):
        tokens = prompt[start : start + session.prefill_rows]
        last = len(tokens) - 1
        drafts = offsets if start + len(tokens) == len(prompt) else 0
        sources = (last,) if drafts else ()
        plan = PassPlan(chain(tokens), sources, drafts, (last,), logits, prompt=True)
        result = session.forward(plan)
        session.commit(range(len(tokens)))
    drafter.observe([last], result)
    sequence.extend([pick_at(result, 0, len(prompt), picker)])


class _Clock:
    """Times one step; what the consumer does between two steps is not counted."""

    def __init__(self, session: Session):
        self._session = session
        self.start()

    def start(self) -> None:
        """Begin a step."""
        self._began = time.perf_counter()
        self._before = dict(self._session.spent_ms)

    def lap(self) -> StepTimes:
        """End a step; return its times."""
        spent = {name: ms - self._before[name] for name, ms in self._session.spent_ms.items()}
        copies_ms = spent.pop(COPIES)
        return StepTimes(spent, copies_ms, (time.perf_counter() - self._began) * 1e3)
