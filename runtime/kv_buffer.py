"""The keys and values of one batch: a token-major buffer that only accepted rows enter.

[2N, S, B, Hkv, Dh]: slab 2i holds the keys of layer i, slab 2i + 1 its values; slot s of a slab belongs to position s.
A pass reads views of the first P slots and writes its rows into the scratch; `commit` moves the accepted rows.
"""

from collections.abc import Sequence

import numpy as np


class KVBuffer:
    def __init__(self, layers: int, capacity: int, rows: int, batch: int, heads: int, head_dim: int, dtype: np.dtype):
        """capacity: S, in tokens; rows: the most rows of one pass. Memory is touched, and so taken, only as it is filled."""
        self.slots = np.empty((2 * layers, capacity, batch, heads, head_dim), dtype)
        self.scratch = np.empty((2 * layers, rows, batch, heads, head_dim), dtype)
        self.length = 0  # P: slots in use
        self.moved_bytes = 0  # by commits since the buffer was made

    @property
    def capacity(self) -> int:
        return self.slots.shape[1]

    def past(self, slab: int) -> np.ndarray:
        """[P, B, Hkv, Dh], a view."""
        return self.slots[slab, : self.length]

    def new(self, slab: int, rows: int) -> np.ndarray:
        """[rows, B, Hkv, Dh], a view that a graph writes."""
        return self.scratch[slab, :rows]

    def commit(self, rows: Sequence[int]) -> None:
        """Append these rows of the last pass, in this order; the others are forgotten."""
        end = self.length + len(rows)
        if end > self.capacity:
            raise ValueError(f"commit of {len(rows)} rows at {self.length} exceeds the capacity of {self.capacity}")
        accepted = self.scratch[:, rows]  # [2N, n, B, Hkv, Dh]
        self.slots[:, self.length : end] = accepted
        self.length = end
        self.moved_bytes += accepted.nbytes
