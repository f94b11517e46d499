"""Drafts under a guard, which takes them from whatever drafter there is as long as they win.

In: a drafter. Out: its proposals, or the root alone, exactly what plain decoding proposes. Time runs
from a proposal to the note of its pass, so that no consumer's time counts.
"""

import time
from collections.abc import Callable

from firp.runtime.drafters.guard import Guard
from firp.runtime.drafters.interface import Drafter, Proposal
from firp.runtime.passes.pass_plan import Pass
from firp.runtime.passes.sequence import Sequence
from firp.runtime.passes.session import Session
from firp.runtime.trees.tree import root_only


class GuardedDrafter:
    """A drafter under guard. clock: seconds, from any moment on."""

    def __init__(self, drafter: Drafter, clock: Callable[[], float] = time.perf_counter):
        self.prompt_offsets = drafter.prompt_offsets
        self._drafter = drafter
        self._guard = Guard()
        self._clock = clock
        self._plain = True  # whether the pass is one of plain decoding
        self._began: float | None = None  # the step; None before the first
        self._drafted = 0.0  # when its proposal was made

    def propose(self, sequence: Sequence, session: Session, max_depth: int) -> Proposal:
        self._began = self._drafted = self._clock()
        if not self._guard.drafts:
            self._plain = True
            return Proposal(root_only(sequence.root))
        proposal = self._drafter.propose(sequence, session, max_depth)
        self._plain = len(proposal.tree.tokens) == 1 and not proposal.sources
        self._drafted = self._clock()
        return proposal

    def observe(self, accepted: list[int], result: Pass) -> None:
        self._drafter.observe(accepted, result)
        if self._began is None:  # the prompt's pass
            return
        now = self._clock()
        if self._plain:
            self._guard.plain_step((now - self._drafted) * 1e3, (self._drafted - self._began) * 1e3)
        else:
            self._guard.drafted_step(len(accepted), (now - self._began) * 1e3)
