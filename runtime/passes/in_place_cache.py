"""Keys and values by the "in place" contract: a graph writes its rows into the slots after the
decided tokens, and nothing is copied but the accepted rows of a tree.

[slabs, lanes, Hkv, S, Dh], head-major, in one piece of memory. S grows with the longest text, for
attention looks at all S slots: the heads are then spread over more of the same memory; and shrinks
where the texts are much shorter. A pass over
the first lanes sees the leading part of each slab, so any number of them decodes with one graph.
What a system gives only when it is used takes longer to be given than to be filled: it is touched
before S grows, in pieces.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile

import numpy as np

from firp.runtime.backends.interface import Array, Memory
from firp.runtime.bundle.dtypes import to_storage
from firp.runtime.passes.cache_view import CacheSize, Seen, View

STEP = 64  # slots: S is a multiple of it
SHARE = 16  # S grows by a sixteenth of itself, or by one step
AHEAD = 4  # tokens of a pass, about: so many before S grows, all of the memory should have been touched
TOUCHED = 16  # slots of a lane at once


class InPlaceCache:
    """Slabs of all lanes. Slots after the last written one hold zeros: also what the mask hides must
    be finite.
    """

    def __init__(self, memory: Memory, size: CacheSize):
        self.memory = memory
        self.capacity = size.capacity
        self.lengths = [0] * size.lanes
        self.moved_bytes = 0
        self._lanes = size.lanes
        self._slabs = size.slabs
        self._heads = size.heads
        self._head_dim = size.head_dim
        self.most = _most(size)
        self._values = memory.zeros((self._values_of(self.most),), size.dtype, "keys and values")
        self._slots = 0  # S
        self._touched = 0  # values from the first on, which the system has given
        self._views: dict[range, list[Array]] = {}  # of each slab, at this S
        self._written = [[0] * self._slabs for _ in self.lengths]  # slots that hold something, by lane
        self._spare: Array | None = None  # one lane of a slab, to swap two through

    @property
    def slots(self) -> Array:
        """All slabs, [slabs, lanes, Hkv, S, Dh], a view."""
        shape = (self._slabs, self._lanes, self._heads, self._slots, self._head_dim)
        return self._values[: int(np.prod(shape))].reshape(*shape)

    def _rows_of(self, slabs: range, lane: int) -> list[Array]:
        """Heads of one lane in these slabs, [n, S, Dh] each, views; in one piece where they lie so."""
        every = self.slots
        if self._lanes == 1:
            heads = (slabs.stop - slabs.start) * self._heads
            return [every[slabs.start : slabs.stop].reshape(heads, self._slots, self._head_dim)]
        return [every[slab][lane] for slab in slabs]

    def reserve(self, lanes: range, rows: int) -> None:
        needed = max(self.lengths[lane] for lane in lanes) + rows
        if needed > self._slots:
            self._lay_out(self._grown(needed))
            return
        missing = self._values_of(self._grown(min(self._slots + 1, self.most))) - self._touched
        if missing > 0:
            self._touch(-(-missing // ((self._slots - needed) // AHEAD + 1)))

    def _grown(self, needed: int) -> int:
        """S when it has grown to hold so many slots."""
        if needed > self.most:
            raise ValueError(f"{needed} slots exceed the {self.most} of the cache")
        grown = self._slots + max(STEP, self._slots // SHARE) if self._slots else 0
        return min(self.most, -(-max(needed, grown) // STEP) * STEP)

    def _values_of(self, slots: int) -> int:
        return self._slabs * self._lanes * self._heads * slots * self._head_dim

    def prepare(self, lane: int, rows: int, in_time: Callable[[], bool]) -> bool:
        needed = self.lengths[lane] + rows
        end = self._values_of(self._grown(needed)) if needed > self._slots else 0
        if self._touched >= end:
            return True
        some = self._values_of(TOUCHED) // self._lanes
        self._touch(some)
        while self._touched < end and in_time():
            self._touch(some)
        return False

    def _touch(self, values: int) -> None:
        stop = min(self._touched + values, self._values.shape[0])
        self.memory.touch(self._values[self._touched : stop])
        self._touched = stop

    def shrink(self, tokens: int) -> None:
        """Look at no more slots than a text of so many tokens needs, where that is less than half of
        them. Longer texts are forgotten.
        """
        slots = -(-(tokens + 1) // STEP) * STEP
        if 2 * slots < self._slots:
            self._cut(slots)

    def _cut(self, slots: int) -> None:
        """Look at so many slots, which are fewer than now. Longer texts are forgotten."""
        self.lengths = [length if length <= slots else 0 for length in self.lengths]
        self._lay_out(slots)
        self._written = [[min(count, slots) for count in written] for written in self._written]

    def _lay_out(self, slots: int) -> None:
        """Give every head so many slots."""
        used = min(max(map(max, self._written)), slots)
        if used:
            heads = self._slabs * self._lanes * self._heads
            self.memory.lay_out(self._values, heads, self._slots, slots, used, self._head_dim)
        self._slots = slots
        self._touched = max(self._touched, self._values_of(slots))
        self._views.clear()

    def view(self, lanes: range, rows: int, window: int | None = None) -> View:
        """All slots, whatever the window: a graph takes whole buffers, and `last_slots` of them."""
        seen = Seen(range(self._slots), self._slots)
        return View(seen, tuple(self.lengths[lane] for lane in lanes), lanes)

    def begin(self, slabs: range, lanes: range, rows: int) -> None:
        """What passes before this one wrote beyond its rows is wiped: it may not be finite."""
        for lane in lanes:
            end = self.lengths[lane] + rows
            written = self._written[lane]
            stale = written[slabs.start]
            if stale > end:
                for heads in self._rows_of(slabs, lane):
                    self.memory.clear_slots(heads, end, stale)
            written[slabs.start : slabs.stop] = [end] * len(slabs)

    def arrays(self, slab: int, places: range, slots: range, rows: int) -> tuple[Array, Array]:
        views = self._views.get(places)
        if views is None:
            every = self.slots
            views = [every[slab][places.start : places.stop] for slab in range(self._slabs)]
            self._views[places] = views
        return views[slab], views[slab]

    def commit(self, lane: int, rows: Sequence[int]) -> None:
        length = self.lengths[lane]
        end = length + len(rows)
        if end > self.capacity:
            raise ValueError(
                f"commit of {len(rows)} rows at {length} exceeds the capacity of {self.capacity}"
            )
        there = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], enumerate(rows)))
        moved = [length + row for row in rows[there:]]
        if moved:
            for heads in self._rows_of(range(self._slabs), lane):
                self.memory.move_slots(heads, moved, length + there)
                self.moved_bytes += len(moved) * heads.shape[0] * self._head_dim * heads.dtype.itemsize
        self.lengths[lane] = end

    def rewind(self, lane: int, length: int) -> None:
        self.lengths[lane] = length

    def swap(self, lane: int, other: int) -> None:
        copy = self.memory.copy
        if self._slots:
            if self._spare is None:
                shape = (self._heads * self.most * self._head_dim,)
                self._spare = self.memory.zeros(shape, self._values.dtype, "a lane that moves")
            every = self.slots
            for slab in range(self._slabs):
                one, two = every[slab][lane].reshape(-1), every[slab][other].reshape(-1)
                spare = self._spare[: one.shape[0]]
                copy(one, spare)
                copy(two, one)
                copy(spare, two)
        for state in (self.lengths, self._written):
            state[lane], state[other] = state[other], state[lane]

    def read(self, lane: int, start: int, stop: int) -> np.ndarray:
        """A copy of slots of a lane, [slabs, Hkv, n, Dh], of a cache in host memory."""
        return self.slots[:, lane, :, start:stop].copy()

    def append(self, lane: int, block: np.ndarray) -> None:
        """Append slots [slabs, Hkv, n, Dh] to a lane, of a cache in host memory."""
        start = self.lengths[lane]
        end = start + block.shape[2]
        self.reserve(range(lane, lane + 1), block.shape[2])
        self.slots[:, lane, :, start:end] = block
        self._written[lane] = [max(end, written) for written in self._written[lane]]
        self.lengths[lane] = end

    def adopt(self, other: "InPlaceCache") -> None:
        """Take over the first lanes of another cache, which is of no use any more; texts that are too long
        for this one are forgotten.
        """
        if other._slots > self.most:
            other._cut(self.most)
        lanes = min(self._lanes, other._lanes)
        self._slots = other._slots
        self._touched = self._values_of(self._slots)
        self._views.clear()
        if self._slots:
            mine, theirs = self.slots, other.slots
            for slab in range(self._slabs):
                self.memory.copy(theirs[slab][:lanes], mine[slab][:lanes])
        self.lengths[:lanes] = other.lengths[:lanes]
        self._written[:lanes] = other._written[:lanes]
        self.moved_bytes = other.moved_bytes

    def clear(self) -> None:
        self.memory.clear(self._values)
        self.lengths = [0] * self._lanes
        self._written = [[0] * self._slabs for _ in self.lengths]

    def fill(self, rng: np.random.Generator, length: int) -> None:
        self.clear()
        self.reserve(range(self._lanes), length)
        for slab in range(self._slabs):
            shape = (self._lanes, self._heads, self._slots, self._head_dim)
            noise = 0.1 * rng.standard_normal(shape, np.float32)
            noise[:, :, length:] = 0
            self.memory.write(self.slots[slab], to_storage(noise, self._values.dtype))
        self._written = [[length] * self._slabs for _ in self.lengths]
        self.lengths = [length] * self._lanes


def last_slots(lengths: Sequence[int], rows: int, window: int, slots: int) -> range:
    """Of S slots those that rows with a window see, of lanes that have cached so many tokens. They begin
    at a whole step: a row's sums are then made in one order, whatever lies before its window.
    """
    start = max(0, min(lengths) - window + 1) // STEP * STEP
    return range(start, min(slots, -(-(max(lengths) + rows) // STEP) * STEP))


def _most(size: CacheSize) -> int:
    """S at most: all tokens, and a pass after them."""
    return -(-(size.capacity + (size.lane_rows or size.rows)) // STEP) * STEP


def in_place_rows(size: CacheSize) -> int:
    """Rows of slabs that such a cache takes: of all lanes, and of one slab of a lane that moves."""
    return _most(size) * (size.slabs * size.lanes + (size.lanes > 1))
