"""FIRP's tree and that of prompt lookup as one, under one budget of rows.

In: both drafters. Out: the most probable nodes of the two; a node that both propose keeps the
higher probability. FIRP's sources are chosen in the merged tree. Where no source covered the
accepted row, so that FIRP has nothing to say, lookup still drafts.
"""

from firp.runtime.drafters.firp import FirpDrafter
from firp.runtime.drafters.interface import Proposal
from firp.runtime.drafters.lookup import LookupDrafter
from firp.runtime.passes.pass_plan import Pass
from firp.runtime.passes.sequence import Sequence
from firp.runtime.passes.session import Session
from firp.runtime.trees.tree import likely_path, merge_trees
from firp.runtime.trees.tree_config import CHAIN


class MergedDrafter:
    """Drafts of FIRP and of prompt lookup; `firp.config` has the budget of both."""

    def __init__(self, firp: FirpDrafter, lookup: LookupDrafter):
        self._firp = firp
        self._lookup = lookup
        self.prompt_offsets = firp.prompt_offsets

    def propose(self, sequence: Sequence, session: Session | None, max_depth: int) -> Proposal:
        drafted = self._firp.draft(sequence, session, max_depth)
        copied = self._lookup.draft(sequence, max_depth)
        config = self._firp.config
        if len(drafted.tokens) == 1:
            tree = copied
        elif config.kind == CHAIN:
            tree = likely_path(merge_trees([drafted, copied], 2 * config.rows), config.rows)
        else:
            tree = merge_trees([drafted, copied], config.rows)
        return self._firp.with_sources(tree, max_depth)

    def observe(self, accepted: list[int], result: Pass) -> None:
        self._firp.observe(accepted, result)
        self._lookup.observe(accepted, result)
