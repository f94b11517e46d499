"""Keys and values by the "in place" contract: a graph writes its rows into the slots after the
decided tokens, and nothing is copied but the accepted rows of a tree.

[2N, B, Hkv, S, Dh], head-major, in one piece of memory. S grows with the text, for attention looks
at all S slots: the heads are then spread over more of the same memory.
"""

from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from firp.runtime.backends.interface import Array, Memory
from firp.runtime.bundle.dtypes import to_storage
from firp.runtime.passes.cache_view import CacheSize, View

STEP = 64  # slots: S is a multiple of it
SHARE = 16  # S grows by a sixteenth of itself, or by one step


class InPlaceCache:
    """Slabs of one sequence. Slots after the last written one hold zeros: also what the mask hides
    must be finite.
    """

    def __init__(self, memory: Memory, size: CacheSize):
        self.memory = memory
        self.capacity = size.capacity
        self.length = 0
        self.moved_bytes = 0
        self._slabs = 2 * size.layers
        self._heads = size.heads
        self._head_dim = size.head_dim
        self._most = -(-(size.capacity + size.rows) // STEP) * STEP
        values = self._slabs * size.heads * self._most * size.head_dim
        self._values = memory.zeros((values,), size.dtype, "keys and values")
        self._slots = 0  # S
        self._buffers: list[Array] = []  # of each slab, at this S
        self._written = [0] * self._slabs  # slots of each slab that hold something

    @property
    def slots(self) -> Array:
        """All slabs, [2N, 1, Hkv, S, Dh], a view."""
        shape = (self._slabs, 1, self._heads, self._slots, self._head_dim)
        return self._values[: self._slabs * self._heads * self._slots * self._head_dim].reshape(*shape)

    def _rows_of(self, slabs: range) -> Array:
        """Heads of these slabs one after the other, [n*Hkv, S, Dh], a view."""
        head = self._slots * self._head_dim
        some = self._values[slabs.start * self._heads * head : slabs.stop * self._heads * head]
        return some.reshape(len(slabs) * self._heads, self._slots, self._head_dim)

    def reserve(self, rows: int) -> None:
        needed = self.length + rows
        if needed <= self._slots:
            return
        if needed > self._most:
            raise ValueError(f"{needed} slots exceed the {self._most} of the cache")
        grown = self._slots + max(STEP, self._slots // SHARE) if self._slots else 0
        slots = min(self._most, -(-max(needed, grown) // STEP) * STEP)
        used = max(self._written)
        if used:
            self.memory.spread(
                self._values, self._slabs * self._heads, self._slots, slots, used, self._head_dim
            )
        self._slots = slots
        every = self.slots
        self._buffers = [every[slab] for slab in range(self._slabs)]

    def view(self, rows: int) -> View:
        return View(self._slots, self._slots, self.length)

    def begin(self, slabs: range, rows: int) -> None:
        """What passes before this one wrote beyond its rows is wiped: it may not be finite."""
        end = self.length + rows
        stale = self._written[slabs.start]
        if stale > end:
            self.memory.clear_slots(self._rows_of(slabs), end, stale)
        self._written[slabs.start : slabs.stop] = [end] * len(slabs)

    def arrays(self, slab: int, slots: int, rows: int) -> tuple[Array, Array]:
        buffer = self._buffers[slab]
        return buffer, buffer

    def commit(self, rows: Sequence[int]) -> None:
        end = self.length + len(rows)
        if end > self.capacity:
            raise ValueError(
                f"commit of {len(rows)} rows at {self.length} exceeds the capacity of {self.capacity}"
            )
        there = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], enumerate(rows)))
        moved = [self.length + row for row in rows[there:]]
        if moved:
            every = self._rows_of(range(self._slabs))
            self.memory.move_slots(every, moved, self.length + there)
            row_bytes = every.shape[0] * self._head_dim * every.dtype.itemsize
            self.moved_bytes += len(moved) * row_bytes
        self.length = end

    def rewind(self, length: int) -> None:
        self.length = length

    def clear(self) -> None:
        self.memory.clear(self._values)
        self.length = 0
        self._written = [0] * self._slabs

    def fill(self, rng: np.random.Generator, length: int) -> None:
        self.clear()
        self.reserve(length)
        for slab in range(self._slabs):
            shape = (self._heads, self._slots, self._head_dim)
            noise = 0.1 * rng.standard_normal(shape, np.float32)
            noise[:, length:] = 0
            self.memory.write(self.slots[slab][0], to_storage(noise, self._values.dtype))
        self._written = [length] * self._slabs
        self.length = length
