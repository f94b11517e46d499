"""The keys and values of one batch: a token-major buffer that only accepted rows enter.

[2N, S, B, Hkv, Dh]: slab 2i holds the keys of layer i, slab 2i + 1 its values; slot s of a slab
belongs to position s. A pass reads views of the first slots and writes its rows into the scratch;
`commit` moves the accepted rows.
"""

import math
from collections.abc import Sequence

import numpy as np

from firp.runtime.backends.interface import Array, Memory
from firp.runtime.bundle.dtypes import to_storage


class KVBuffer:
    def __init__(
        self,
        memory: Memory,
        layers: int,
        capacity: int,
        rows: int,
        batch: int,
        heads: int,
        head_dim: int,
        dtype: type,
    ):
        """capacity: S, in tokens; rows: the most rows of one pass."""
        self.memory, self.capacity = memory, capacity
        self._row_shape = (batch, heads, head_dim)
        self.slots = memory.zeros((2 * layers, capacity, *self._row_shape), dtype, "keys and values")
        self.scratch = memory.zeros((2 * layers, rows, *self._row_shape), dtype, "keys and values of a pass")
        self.length = 0  # P: slots in use
        self.moved_bytes = 0  # by commits since the buffer was made

    @property
    def slots_in_view(self) -> int:
        """S of a pass: the slots in use, and on some devices empty ones after them, which the mask
        hides.
        """
        return self.memory.slots_in_view(self.length, self.capacity)

    def past(self, slab: int, slots: int) -> Array:
        """[slots, B, Hkv, Dh], a view."""
        return self.slots[slab][:slots]

    def new(self, slab: int, rows: int) -> Array:
        """[rows, B, Hkv, Dh], a view that a graph writes."""
        return self.scratch[slab][:rows]

    def clear(self) -> None:
        """Forget everything."""
        self.memory.clear(self.slots)
        self.length = 0

    def fill(self, rng: np.random.Generator, length: int) -> None:
        """Noise in the first `length` slots, to time passes with."""
        for slab in range(self.slots.shape[0]):
            target = self.past(slab, length)
            self.memory.write(
                target, to_storage(0.1 * rng.standard_normal(target.shape, np.float32), target.dtype)
            )
        self.length = length

    def commit(self, rows: Sequence[int]) -> None:
        """Append these rows of the last pass, in this order; the others are forgotten."""
        end = self.length + len(rows)
        if end > self.capacity:
            raise ValueError(
                f"commit of {len(rows)} rows at {self.length} exceeds the capacity of {self.capacity}"
            )
        self.memory.move_rows(self.scratch, rows, self.slots, self.length)
        self.length = end
        self.moved_bytes += (
            len(rows) * self.slots.shape[0] * math.prod(self._row_shape) * self.slots.dtype.itemsize
        )
