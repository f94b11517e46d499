"""FIRP: trees from the guesses of pseudo rows (docs/method.md).

In: the guesses of the row that was accepted last. Out: a tree in which each guess is ranked given
the token that it follows, and the sources whose pseudo rows ride in its pass.
"""

from firp.runtime.drafters.interface import Proposal
from firp.runtime.passes.pass_plan import Pass
from firp.runtime.passes.sequence import Sequence
from firp.runtime.passes.session import Session
from firp.runtime.trees.guesses import Guesses, independent
from firp.runtime.trees.path_correction import PathCorrection
from firp.runtime.trees.tree import DraftTree, build_tree, draft_sources, root_only
from firp.runtime.trees.tree_config import TreeConfig


class FirpDrafter:
    """Drafts from pseudo rows: those that rode with the accepted row, or, where the tree has no
    sources, those of a draft pass after acceptance. greedy: what the drafts are for; it changes
    their ranking.
    """

    def __init__(
        self, tree: TreeConfig, num_predictors: int, correction: PathCorrection | None, greedy: bool
    ):
        self.config = tree
        self.offsets = tree.depth or num_predictors
        self.draft_pass = tree.draft_sources == 0
        self.prompt_offsets = 0 if self.draft_pass else self.offsets
        self._correction = correction
        self._greedy = greedy
        self._guesses: Guesses | None = None  # of the row accepted last

    def propose(self, sequence: Sequence, session: Session | None, max_depth: int) -> Proposal:
        tree = self.draft(sequence, session, max_depth)
        return self.with_sources(tree, max_depth)

    def draft(self, sequence: Sequence, session: Session | None, max_depth: int) -> DraftTree:
        """The tree alone."""
        if max_depth < 1:
            return root_only(sequence.root)
        guesses = self._guesses
        if self.draft_pass:
            guesses = session.draft(self.offsets) if session else None
        if guesses is None:
            return root_only(sequence.root)
        correction = self._correction
        ranking = (
            correction.rank(sequence.root, guesses, self._greedy) if correction else independent(guesses)
        )
        return build_tree(self.config, sequence.root, guesses, ranking, max_depth)

    def with_sources(self, tree: DraftTree, max_depth: int) -> Proposal:
        """A tree, also one that others had a part in, with the rows that draft for the next
        step.
        """
        sources = draft_sources(tree, self.config.draft_sources) if max_depth > 0 else []
        return Proposal(tree, tuple(sources), self.offsets if sources else 0)

    def observe(self, accepted: list[int], result: Pass) -> None:
        self._guesses = result.guesses_after(accepted[-1])
