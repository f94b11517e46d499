"""The rectangle that the plans of a pass fill, and what each of them gets of it.

In: plans of several sequences. Out: trees of one size; each plan's own part of the results.
"""

from typing import NamedTuple

import numpy as np

from firp.runtime.passes.pass_plan import Pass, PassPlan
from firp.runtime.trees.guesses import Guesses
from firp.runtime.trees.tree import DraftTree


class BatchSize(NamedTuple):
    """Sizes that the memory of a batch is made for."""

    capacity: int  # tokens that each sequence may cache, prompt included
    rows: int  # of a pass, all sequences and their pseudo rows together
    decoded_rows: int  # of them, the most that are decoded to logits, or to guesses
    lanes: int = 1  # sequences
    lane_rows: int | None = None  # of a pass, those of one sequence; None: it may have all of them


class PassShape(NamedTuple):
    """What the lanes of a pass have in common."""

    width: int  # sequences, with those that nobody reads
    rows: int  # T, of the longest tree
    sources: int  # M, of the tree with the most
    offsets: int  # pseudo rows of each
    decoded: int  # rows decoded to logits

    @property
    def all_rows(self) -> int:
        """R: rows of the upper half."""
        return self.rows + self.sources * self.offsets


def filled(tree: DraftTree, rows: int) -> DraftTree:
    """A tree of so many rows: the last ones are children of the root that nobody reads."""
    missing = rows - len(tree.tokens)
    if not missing:
        return tree
    return DraftTree(
        tree.tokens + [tree.tokens[0]] * missing,
        tree.parents + [0] * missing,
        tree.depths + [1] * missing,
        tree.probabilities + [0.0] * missing,
        tree.drafters + [""] * missing,
    )


def result_of(plan: PassPlan, found: list[np.ndarray], drafts: bool, logits: bool, offsets: int) -> Pass:
    """What a plan asked for, of the rows that its lane's part of the pass brought."""
    decoded, guessed = len(plan.decoded), len(plan.sources) * offsets
    return Pass(
        found[-1][:decoded] if logits else None,
        found[0][:decoded],
        found[1][:decoded],
        Guesses(found[2][:guessed], found[3][:guessed]) if drafts else None,
        plan.sources,
        offsets,
    )
