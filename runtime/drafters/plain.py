"""No drafts: every pass decodes the root alone, so that the loop has no branch."""

from firp.runtime.drafters.interface import Proposal
from firp.runtime.passes.pass_plan import Pass
from firp.runtime.passes.sequence import Sequence
from firp.runtime.passes.session import Session
from firp.runtime.trees.tree import root_only


class PlainDrafter:
    """Proposes the root alone."""

    prompt_offsets = 0

    def propose(self, sequence: Sequence, session: Session | None, max_depth: int) -> Proposal:
        return Proposal(root_only(sequence.root))

    def observe(self, accepted: list[int], result: Pass) -> None:
        return
