"""The contract between the loop and where its draft trees come from.

In: a sequence, and the session that decodes it. Out: the tree that the next pass verifies, and
which of its rows draft for the pass after it. A drafter serves one request. No drafter changes a
token, and the loop never reads a draft's probability.
"""

from typing import NamedTuple, Protocol

from firp.runtime.passes.pass_plan import Pass
from firp.runtime.passes.sequence import Sequence
from firp.runtime.passes.session import Session
from firp.runtime.trees.tree import DraftTree


class Proposal(NamedTuple):
    """The tree that the next pass runs, with its draft sources."""

    tree: DraftTree  # node 0 is the sequence's root
    sources: tuple[int, ...] = ()  # rows of the tree whose pseudo rows ride in its pass, ascending
    offsets: int = 0  # pseudo rows of each source; 0 where there is no source


class Drafter(Protocol):
    """A source of the draft trees of one request."""

    prompt_offsets: int  # pseudo rows that ride with the last row of the prompt; 0: none

    def propose(self, sequence: Sequence, session: Session | None, max_depth: int) -> Proposal:
        """The tree for the sequence's root, no node deeper than `max_depth`, which may be 0. It may
        run a draft pass in the session; None: it runs none.
        """

    def observe(self, accepted: list[int], result: Pass) -> None:
        """Take note of a pass: its rows that were accepted, the root first. `result` is valid until
        the next pass.
        """
