"""The loop: prefill → propose → run → accept → commit.

In: a `Session`, a `Request`, a `Drafter`. Out: a `Step` for every pass, with the tokens it emitted.
Drafted decoding emits the tokens that plain decoding emits: the tree decides only how many of them
come from one pass.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

from firp.runtime.drafters.interface import Drafter
from firp.runtime.loop.accept import Accepted, accept
from firp.runtime.loop.picker import Picker
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.passes.request import Request
from firp.runtime.passes.sequence import Sequence
from firp.runtime.passes.session import COPIES, Session
from firp.runtime.picking.logprobs import TokenLogprob, token_logprob
from firp.runtime.trees.tree import chain, root_only


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
    logprobs: list[TokenLogprob] | None = None  # of the tokens
    prompt_logprobs: list[TokenLogprob | None] | None = None  # of the prompt's, in the first step


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
        every_row = request.params.prompt_logprobs is not None
        known = session.known_prefix(sequence.tokens) if reuse and not every_row else 0
        session.rewind(known)
        first = prefill(session, sequence, drafter, picker, logits)
        sequence.extend(first.accepted.tokens, first.accepted.ended)
        yield Step(
            *(first.accepted.tokens, 0, 0, sequence.finish_reason, clock.lap(), known),
            *(first.accepted.logprobs, first.prompt_logprobs),
        )
        while sequence.finish_reason is None:
            clock.start()
            # a step emits one token more than it accepts
            proposal = drafter.propose(sequence, session, sequence.remaining - 1)
            result = session.forward(PassPlan(*proposal, bring_logits=logits))
            accepted = accept(proposal.tree, result, sequence, picker)
            session.commit(accepted.rows)
            drafter.observe(accepted.rows, result)
            sequence.extend(accepted.tokens, accepted.ended)
            yield Step(
                *(accepted.tokens, len(proposal.tree.tokens), len(accepted.rows) - 1),
                *(sequence.finish_reason, clock.lap(), 0, accepted.logprobs),
            )


class Prefilled(NamedTuple):
    """What the prompt's last row gave."""

    accepted: Accepted  # the first token
    prompt_logprobs: list[TokenLogprob | None] | None  # where the request asks for them


def prefill(
    session: Session, sequence: Sequence, drafter: Drafter, picker: Picker, logits: bool
) -> Prefilled:
    """Fill the cache with what it lacks of the prompt, in as few passes as fit, and pick the first
    token. logits: whether to bring those of its last row to the host; those of every row come where
    the request asks for the logprobs of its prompt.
    """
    prompt = sequence.tokens
    offsets = drafter.prompt_offsets if sequence.remaining > 1 else 0
    top = sequence.request.params.prompt_logprobs
    piece = session.prefill_rows if top is None else min(session.prefill_rows, session.decoded_rows)
    logprobs: list[TokenLogprob | None] = [None]  # nothing comes before the first token
    for start in range(session.kv.length, len(prompt), piece):
        tokens = prompt[start : start + piece]
        last = len(tokens) - 1
        drafts = offsets if start + len(tokens) == len(prompt) else 0
        sources = (last,) if drafts else ()
        decode = (last,) if top is None else None
        plan = PassPlan(chain(tokens), sources, drafts, decode, logits or top is not None, prompt=True)
        result = session.forward(plan)
        if top is not None:
            following = prompt[start + 1 : start + piece + 1]
            logprobs += [token_logprob(*pair, top) for pair in zip(result.logits, following, strict=False)]
        session.commit(range(len(tokens)))
    drafter.observe([last], result)
    accepted = accept(root_only(sequence.root), result.last(), sequence, picker)
    return Prefilled(accepted, None if top is None else logprobs)


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
