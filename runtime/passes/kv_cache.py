"""The keys and values of one sequence, by the "prefix" contract: graphs read views of the first
slots and write their rows into a scratch, and only accepted rows enter the cache.

[2N, S, B, Hkv, Dh], token-major: slab 2i holds the keys of layer i, slab 2i + 1 its values; slot s
of a slab belongs to position s.
"""

import math
from collections.abc import Sequence

import numpy as np

from firp.runtime.backends.interface import Array, Memory
from firp.runtime.bundle.dtypes import to_storage


class KVCache:
    """Slabs of one sequence. capacity: S, in tokens; rows: the most rows of one pass; row_shape:
    (B, Hkv, Dh).
    """

    def __init__(
        self,
        memory: Memory,
        layers: int,
        capacity: int,
        rows: int,
        row_shape: tuple[int, int, int],
        dtype: type,
    ):
        self.memory = memory
        self.capacity = capacity
        self._row_shape = row_shape
        self.slots = memory.zeros((2 * layers, capacity, *row_shape), dtype, "keys and values")
        self.scratch = memory.zeros((2 * layers, rows, *row_shape), dtype, "keys and values of a pass")
        self.length = 0  # P: slots in use
        self.moved_bytes = 0  # by commits since the cache was made

    @property
    def slots_in_view(self) -> int:
        """S of a pass: the slots in use, and on some devices empty ones after them, which the mask
        hides.
        """
        return self.memory.slots_in_view(self.length, self.capacity)

    def past(self, slab: int, slots: int) -> Array:
        """Keys or values of the first slots, [slots, B, Hkv, Dh], a view."""
        return self.slots[slab][:slots]

    def new(self, slab: int, rows: int) -> Array:
        """Keys or values of a pass's rows, [rows, B, Hkv, Dh], a view that a graph writes."""
        return self.scratch[slab][:rows]

    def clear(self) -> None:
        """Forget everything."""
        self.memory.clear(self.slots)
        self.length = 0

    def fill(self, rng: np.random.Generator, length: int) -> None:
        """Put noise in the first `length` slots, to time passes with."""
        for slab in range(self.slots.shape[0]):
            target = self.past(slab, length)
            noise = 0.1 * rng.standard_normal(target.shape, np.float32)
            self.memory.write(target, to_storage(noise, target.dtype))
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
        row_bytes = self.slots.shape[0] * math.prod(self._row_shape) * self.slots.dtype.itemsize
        self.moved_bytes += len(rows) * row_bytes
