"""The layout of a pass: which rows see each other, and where they stand.

In: a tree's parents and depths, its draft sources. Out: `Layout`, from which masks and positions
are made.
"""

import functools
from typing import NamedTuple

import numpy as np

KEPT = 64  # layouts; one of the largest pass takes a megabyte


class Layout(NamedTuple):
    """Rows of a pass, with what they see and where they stand: T rows of the tree, then the pseudo
    rows of each source.
    """

    visible: np.ndarray  # [R, R] bool: row i attends to row j of this pass
    depths: np.ndarray  # [R] i64: position minus that of the root

    def first(self, rows: int) -> "Layout":
        """Its first rows, as far as they see each other."""
        return Layout(self.visible[:rows, :rows], self.depths[:rows])


@functools.lru_cache(KEPT)
def layout(
    parents: tuple[int, ...], depths: tuple[int, ...], sources: tuple[int, ...], offsets: int
) -> Layout:
    """Masks and positions of one pass: a chain of prompt tokens, a tree, and the pseudo rows of its
    sources. The same ones come again and again, so arrays are kept, and read-only.

    A tree row sees its ancestors and itself; a pseudo row sees its source, what its source sees,
    and the pseudo rows of that source up to itself, at position source + 1, + 2, ... (method.md,
    "One decode step").
    """
    rows, pseudo = len(parents), len(sources) * offsets
    visible = np.zeros((rows + pseudo, rows + pseudo), bool)  # [R, R]
    for node, parent in enumerate(parents):
        if parent >= 0:
            visible[node, :node] = visible[parent, :node]
        visible[node, node] = True
    all_depths = np.empty(rows + pseudo, np.int64)
    all_depths[:rows] = depths
    if pseudo:
        visible[rows:, :rows] = np.repeat(visible[list(sources), :rows], offsets, axis=0)
        all_depths[rows:] = (all_depths[list(sources)][:, None] + np.arange(1, offsets + 1)).ravel()
        triangle = np.tri(offsets, dtype=bool)
        for start in range(rows, rows + pseudo, offsets):
            visible[start : start + offsets, start : start + offsets] = triangle
    for array in (visible, all_depths):
        array.flags.writeable = False
    return Layout(visible, all_depths)
