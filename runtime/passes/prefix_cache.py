"""Keys and values by the "prefix" contract: graphs read views of the first slots and write their
rows into a scratch, and only accepted rows enter the cache.

[2N, S, B, Hkv, Dh], token-major.
"""

import math
from collections.abc import Sequence

import numpy as np

from firp.runtime.backends.interface import Array, Memory
from firp.runtime.bundle.dtypes import to_storage
from firp.runtime.passes.cache_view import CacheSize, View


class PrefixCache:
    """Slabs of one sequence, the only lane, and a scratch for the rows of a pass."""

    def __init__(self, memory: Memory, size: CacheSize):
        self.memory = memory
        self.capacity = size.capacity
        slabs, row = 2 * size.layers, (1, size.heads, size.head_dim)
        self.slots = memory.zeros((slabs, size.capacity, *row), size.dtype, "keys and values")
        self.scratch = memory.zeros((slabs, size.rows, *row), size.dtype, "keys and values of a pass")
        self.lengths = [0]
        self.moved_bytes = 0

    def reserve(self, lanes: range, rows: int) -> None:
        return  # the scratch holds the largest pass

    def view(self, lanes: range, rows: int) -> View:
        """The slots in use, and on some devices empty ones after them, which the mask hides."""
        slots = self.memory.slots_in_view(self.lengths[0], self.capacity)
        return View(slots, slots + rows, (slots,))

    def begin(self, slabs: range, lanes: range, rows: int) -> None:
        return

    def arrays(self, slab: int, lanes: range, slots: int, rows: int) -> tuple[Array, Array]:
        return self.slots[slab][:slots], self.scratch[slab][:rows]

    def commit(self, lane: int, rows: Sequence[int]) -> None:
        length = self.lengths[lane]
        end = length + len(rows)
        if end > self.capacity:
            raise ValueError(
                f"commit of {len(rows)} rows at {length} exceeds the capacity of {self.capacity}"
            )
        self.memory.move_rows(self.scratch, rows, self.slots, length)
        self.lengths[lane] = end
        row_bytes = self.slots.shape[0] * math.prod(self.slots.shape[2:]) * self.slots.dtype.itemsize
        self.moved_bytes += len(rows) * row_bytes

    def rewind(self, lane: int, length: int) -> None:
        self.lengths[lane] = length

    def swap(self, lane: int, other: int) -> None:
        return  # a lane with itself

    def clear(self) -> None:
        self.memory.clear(self.slots)
        self.lengths = [0]

    def fill(self, rng: np.random.Generator, length: int) -> None:
        for slab in range(self.slots.shape[0]):
            target = self.slots[slab][:length]
            noise = 0.1 * rng.standard_normal(target.shape, np.float32)
            self.memory.write(target, to_storage(noise, target.dtype))
        self.lengths = [length]
