"""Drafts under a grammar: what is illegal is left out, what is forced is drafted without a guess.

In: a drafter, and the walk of the request's grammar. Out: its trees without the nodes that the grammar
refuses, and with the tokens that it forces as a path from the root. The pick decides, as ever: the
same text may be cut into other tokens, and then the forced ones are refused.
"""

from firp.runtime.drafters.interface import Drafter, Proposal
from firp.runtime.grammar.walk import Walk
from firp.runtime.passes.pass_plan import Pass
from firp.runtime.passes.sequence import Sequence
from firp.runtime.passes.session import Session
from firp.runtime.picking.context import Context
from firp.runtime.trees.tree import DraftTree, grow, likely_ends, likely_path, merge_trees, root_only
from firp.runtime.trees.tree_config import CHAIN, GRAMMAR, TreeConfig


class GrammarDrafter:
    """A drafter's trees within the rows of `tree`, under a grammar."""

    def __init__(self, drafter: Drafter, tree: TreeConfig, walk: Walk):
        self.prompt_offsets = drafter.prompt_offsets
        self._drafter = drafter
        self._config = tree
        self._walk = walk

    def propose(self, sequence: Sequence, session: Session | None, max_depth: int) -> Proposal:
        proposal = self._drafter.propose(sequence, session, max_depth)
        context = Context(sequence.tokens, [])
        tree = self._within(
            self._legal(proposal.tree, context), self._forced(sequence.root, context, max_depth)
        )
        sources = sorted(likely_ends(tree)[: len(proposal.sources)])
        return Proposal(tree, tuple(sources), proposal.offsets if sources else 0)

    def observe(self, accepted: list[int], result: Pass) -> None:
        self._drafter.observe(accepted, result)

    def _legal(self, tree: DraftTree, context: Context) -> DraftTree:
        """The tree without the nodes that the grammar refuses, and what follows them."""
        if len(tree.tokens) == 1:
            return tree
        paths: list[list[int]] = [[]]
        for parent, token in zip(tree.parents[1:], tree.tokens[1:], strict=True):
            paths.append([*paths[parent], token])
        legal = self._walk.legal(context, paths)
        kept = root_only(tree.tokens[0])
        places = {0: 0}
        for node in range(1, len(tree.tokens)):
            if legal[node] == tree.depths[node]:
                parent = places[tree.parents[node]]
                guess = tree.tokens[node], tree.probabilities[node], tree.drafters[node]
                places[node] = grow(kept, parent, *guess)
        return kept

    def _forced(self, root: int, context: Context, max_depth: int) -> DraftTree:
        """What the grammar forces, as one path that is certain."""
        path = root_only(root)
        for token in self._walk.forced(context)[: min(max_depth, self._config.rows - 1)]:
            grow(path, len(path.tokens) - 1, token, 1.0, GRAMMAR)
        return path

    def _within(self, legal: DraftTree, forced: DraftTree) -> DraftTree:
        """Both trees in one, under the budget of rows."""
        rows = self._config.rows
        if self._config.kind == CHAIN:
            return likely_path(merge_trees([forced, legal], 2 * rows), rows)
        return merge_trees([forced, legal], rows)
