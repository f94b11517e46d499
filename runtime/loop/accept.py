"""Acceptance: the walk from the root along the target's own picks.

In: a tree, the pass that verified it. Out: the rows to keep and the tokens to emit. Draft
probabilities are never read: that is why no drafter can change a token.
"""

from typing import NamedTuple

from firp.runtime.loop.picker import Picker
from firp.runtime.passes.pass_plan import Pass
from firp.runtime.passes.sequence import Sequence
from firp.runtime.picking.context import Context
from firp.runtime.picking.logprobs import TokenLogprob
from firp.runtime.trees.tree import DraftTree


class Accepted(NamedTuple):
    """Decisions of a pass."""

    rows: list[int]  # of the tree, the root first
    tokens: list[int]  # emitted: the accepted drafts and the bonus token
    ended: bool = False  # whether the last of them ends the text
    logprobs: list[TokenLogprob] | None = None  # of the tokens, where the request asks for them

    def drafters(self, tree: DraftTree) -> list[str]:
        """Whose guesses the accepted drafts are, from depth 1 on."""
        return [tree.drafters[row] for row in self.rows[1:]]


def accept(tree: DraftTree, result: Pass, sequence: Sequence, picker: Picker) -> Accepted:
    """Step to the child that holds the token which the target picks at the current row, as long as
    there is one; stop after a token that ends the text. Nothing of the sequence changes.
    """
    rows = [0]
    tokens: list[int] = []
    logprobs: list[TokenLogprob] | None = None if picker.logprobs is None else []
    while True:
        row = rows[-1]
        context = Context(sequence.tokens, tokens)
        token = pick_at(result, row, context, picker)
        if logprobs is not None:
            logprobs.append(picker.logprob(result.logits[row], token))
        tokens.append(token)
        ended = token in sequence.request.ends or picker.complete(context)
        child = next(
            (
                node
                for node in range(row + 1, len(tree.tokens))
                if tree.parents[node] == row and tree.tokens[node] == token
            ),
            None,
        )
        if child is None or ended:
            return Accepted(rows, tokens, ended, logprobs)
        rows.append(child)


def pick_at(result: Pass, place: int, context: Context, picker: Picker) -> int:
    """The target's own pick after a context. place: of the row among those decoded. Without logits the
    pick is greedy, and the token that the graph lists first.
    """
    if result.logits is None:
        return int(result.top_ids[place, 0])
    return picker(result.logits[place], context.position, context)
