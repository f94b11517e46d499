"""Acceptance: the walk from the root along the target's own picks.

In: a tree, the pass that verified it. Out: the rows to keep and the tokens to emit. Draft
probabilities are never read: that is why no drafter can change a token.
"""

from typing import NamedTuple

from firp.runtime.passes.pass_plan import Pass
from firp.runtime.passes.sequence import Sequence
from firp.runtime.sampling import Picker
from firp.runtime.trees.tree import DraftTree


class Accepted(NamedTuple):
    """Decisions of a pass."""

    rows: list[int]  # of the tree, the root first
    tokens: list[int]  # emitted: the accepted drafts and the bonus token


def accept(tree: DraftTree, result: Pass, sequence: Sequence, picker: Picker) -> Accepted:
    """Step to the child that holds the token which the target picks at the current row, as long as
    there is one; stop after a token that ends the text.
    """
    rows = [0]
    tokens = []
    while True:
        row = rows[-1]
        token = pick_at(result, row, sequence.cached + tree.depths[row] + 1, picker)
        tokens.append(token)
        child = next(
            (
                node
                for node in range(row + 1, len(tree.tokens))
                if tree.parents[node] == row and tree.tokens[node] == token
            ),
            None,
        )
        if child is None or token in sequence.request.ends:
            return Accepted(rows, tokens)
        rows.append(child)


def pick_at(result: Pass, place: int, position: int, picker: Picker) -> int:
    """The target's own pick. place: of the row among those decoded. Without logits the pick is
    greedy, and the token that the graph lists first.
    """
    if result.logits is None:
        return int(result.top_ids[place, 0])
    return picker(result.logits[place], position)
