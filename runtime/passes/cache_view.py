"""Sizes of a cache of keys and values, and what a pass sees of it.

In: a cache and the rows of a pass. Out: where slots and rows stand in the pass's mask.
"""

from typing import NamedTuple

import numpy as np


class CacheSize(NamedTuple):
    """Everything that the memory of a cache depends on."""

    slabs: int  # tensors that layers cache: keys and values of each, or latent rows
    capacity: int  # tokens that each sequence may hold
    rows: int  # of the largest pass, all lanes together
    heads: int  # Hkv
    head_dim: int  # Dh
    dtype: np.dtype
    lanes: int = 1  # sequences
    lane_rows: int | None = None  # of a pass, those of one sequence; None: it may have all of them


class Seen(NamedTuple):
    """Slots of the slabs that go in, of layers that read one mask, and columns of this mask."""

    slots: range
    columns: int


class View(NamedTuple):
    """Columns of a pass's mask, and the arrays that it reads."""

    seen: Seen  # cached tokens lie in the first columns, from that of the first slot on
    first: tuple[int, ...]  # of each place: column of its first row
    places: range  # of the slabs: the lanes of the pass, in their order, then those that nobody reads
