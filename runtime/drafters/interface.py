"""Where draft trees come from. FIRP is the first drafter; the loop knows the interface alone.

In: the root token and the guesses of the row it was picked from. Out: the tree that the next pass
verifies, and its draft sources.
"""

from typing import Protocol

from firp.runtime.trees.guesses import Guesses, independent
from firp.runtime.trees.path_correction import PathCorrection
from firp.runtime.trees.tree import DraftTree, TreeConfig, build_tree, draft_sources, root_only


class Drafter(Protocol):
    """Where draft trees come from."""

    offsets: int  # pseudo rows that each source sends along, at most K
    # whether the row accepted last drafts in a pass of its own, instead of sources that ride along
    draft_pass: bool

    def propose(self, root: int, guesses: Guesses | None, max_depth: int) -> DraftTree:
        """The tree that the next pass verifies: node 0 is `root`, no node deeper than `max_depth`."""

    def sources(self, tree: DraftTree) -> list[int]:
        """The rows of that tree whose pseudo rows ride in its pass, ascending."""


class FirpDrafter:
    """Trees from the guesses of pseudo rows, each guess ranked given the token that it follows."""

    def __init__(
        self, tree: TreeConfig, num_predictors: int, correction: PathCorrection | None, greedy: bool
    ):
        self.tree, self.correction, self.greedy = tree, correction, greedy
        self.offsets = tree.depth or num_predictors
        self.draft_pass = tree.draft_sources == 0

    def propose(self, root: int, guesses: Guesses | None, max_depth: int) -> DraftTree:
        if guesses is None or max_depth < 1:
            return root_only(root)
        ranking = (
            self.correction.rank(root, guesses, self.greedy) if self.correction else independent(guesses)
        )
        return build_tree(self.tree, root, guesses, ranking, max_depth)

    def sources(self, tree: DraftTree) -> list[int]:
        return draft_sources(tree, self.tree.draft_sources)
