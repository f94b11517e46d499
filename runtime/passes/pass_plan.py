"""One pass: what it runs, and what it leaves behind.

In: a tree (or a chain of prompt tokens), its draft sources. Out: `Pass`, on the host.
"""

from typing import NamedTuple

import numpy as np

from firp.runtime.trees.guesses import Guesses
from firp.runtime.trees.tree import DraftTree

PREFILL_ROWS = 256  # tokens of a prompt that one pass takes at most
LEAST_PIECE = 2  # tokens of a prompt in a pass: the kernels of a single row have other last bits
# Rows of a decoding pass that attend one by one (`firp.runtime.passes.buffers.head_inputs`), where it is
# not for the sake of equal bits: more of them are faster together.
BY_ROW = 8


class PassPlan(NamedTuple):
    """One pass: T rows of a tree after the cached tokens, then `offsets` pseudo rows of each
    source. Rows that are decoded give logits; pseudo rows give guesses.
    """

    tree: DraftTree
    sources: tuple[int, ...] = ()  # rows of the tree, ascending
    offsets: int = 0  # pseudo rows of each source, 1 to K; 0 where there is no source
    decode: tuple[int, ...] | None = None  # rows of the tree to decode; None: all
    bring_logits: bool = True  # to the host; a greedy pick needs none
    prompt: bool = False  # whether it is a piece of a prompt: many rows, and a size that does not recur

    @property
    def decoded(self) -> tuple[int, ...]:
        """Rows of the tree that are decoded."""
        return tuple(range(len(self.tree.tokens))) if self.decode is None else self.decode


class Pass(NamedTuple):
    """Results of one pass, on the host; views, valid until the next pass."""

    logits: np.ndarray | None  # [G, V] f32 of the decoded rows; None where nobody asked
    top_ids: np.ndarray  # [G, k] i64
    top_logprobs: np.ndarray  # [G, k] f32
    guesses: Guesses | None = None  # of the pseudo rows [E, k], source by source
    sources: tuple[int, ...] = ()
    offsets: int = 0

    def last(self) -> "Pass":
        """The last decoded row alone, without guesses."""
        logits = None if self.logits is None else self.logits[-1:]
        return Pass(logits, self.top_ids[-1:], self.top_logprobs[-1:])

    def guesses_after(self, row: int) -> Guesses | None:
        """A copy of the guesses of a row's own pseudo rows, for others may run before they are used; None
        where the row was no source.
        """
        if row not in self.sources:
            return None
        start = self.sources.index(row) * self.offsets
        return Guesses(*(lists[start : start + self.offsets].copy() for lists in self.guesses))
