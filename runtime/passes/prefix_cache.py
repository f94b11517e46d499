"""Keys and values by the "prefix" contract: graphs read views of the first slots and write their
rows into a scratch, and only accepted rows enter the cache.

A slab is [places * S, Hkv, Dh], token-major, S the capacity. Lanes that run together lie side by side
in its front, [S, B, Hkv, Dh], for graphs take whole arrays: B is a bucket, the next power of two, and
columns without a sequence run a row that nobody reads. All other lanes lie one after the other behind
them, [S, 1, Hkv, Dh] each, and so does a copy of one lane that lies in the bucket and runs alone.
Rows that no lane has written are zeros: also what the mask hides must be finite.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from firp.runtime.backends.interface import Array, Memory
from firp.runtime.bundle.dtypes import to_storage
from firp.runtime.passes.cache_view import CacheSize, Seen, View


class _Column(NamedTuple):
    """Where the slots of a lane lie in a slab."""

    array: Array  # [slots, B, Hkv, Dh]
    column: int


class PrefixCache:
    """Slabs of all lanes, and a scratch for the rows of a pass."""

    def __init__(self, memory: Memory, size: CacheSize):
        self.memory = memory
        self.capacity = self.most = size.capacity
        self._lanes = size.lanes
        self._slabs = size.slabs
        self._row = (size.heads, size.head_dim)
        places = size.lanes if size.lanes == 1 else size.lanes + 1  # the last one is that of the copy
        zeros, dtype = memory.zeros, size.dtype
        self.slots = zeros((self._slabs, places * size.capacity, *self._row), dtype, "keys and values")
        scratch = (self._slabs, size.rows, *self._row)
        self.scratch = zeros(scratch, dtype, "keys and values of a pass")
        self.moved_bytes = 0
        self._spare: Array | None = None  # all lanes of a slab, one after the other, while they move
        self._forget()

    def _forget(self) -> None:
        self.lengths = [0] * self._lanes
        self._written = [0] * self._lanes  # slots that are not zeros, by lane
        self._bucket = 1  # B, as the slabs lie now
        self._copied: list[tuple[int | None, int]] = [(None, 0)] * self._slabs  # lane and slots of each copy
        self._columns = [0] * self._lanes  # of each lane in the scratch, as the last pass left it
        self._width = 1  # columns of the scratch

    def reserve(self, lanes: range, rows: int) -> None:
        """Lay the lanes of a pass side by side; the scratch holds the largest pass."""
        if len(lanes) > 1:
            self._lay_out(len(self._places(lanes)))

    def prepare(self, lane: int, rows: int, in_time: Callable[[], bool]) -> bool:
        return True

    def view(self, lanes: range, rows: int, window: int | None = None) -> View:
        """The slots in use, those before the windows of all lanes left out; on some devices more of them,
        and empty ones after them, which the mask hides.
        """
        lengths = [self.lengths[lane] for lane in lanes]
        first = max(0, min(lengths) - window + 1) if window else 0
        slots = self.memory.slots_in_view(first, max(lengths), self.capacity)
        places = self._places(lanes)
        return View(Seen(slots, len(slots) + rows), (len(slots),) * len(places), places)

    def _places(self, lanes: range) -> range:
        """The columns of the bucket, or the one place of a lane that runs alone."""
        if len(lanes) > 1:
            if lanes.start:
                raise ValueError(f"lanes {lanes} run together: expected the first ones")
            return range(min(1 << (len(lanes) - 1).bit_length(), self._lanes))
        place = self._lanes if self._in_bucket(lanes.start) else lanes.start
        return range(place, place + 1)

    def _in_bucket(self, lane: int) -> bool:
        return lane < self._bucket > 1

    def begin(self, slabs: range, lanes: range, rows: int) -> None:
        """A lane of the bucket that runs alone is copied, as far as its copy lacks slots."""
        self._width = len(self._places(lanes))
        for column, lane in enumerate(lanes):
            self._columns[lane] = column
        if len(lanes) == 1 and self._in_bucket(lanes.start):
            for slab in slabs:
                self._copy_lane(slab, lanes.start)

    def _copy_lane(self, slab: int, lane: int) -> None:
        length = self.lengths[lane]
        owner, copied = self._copied[slab]
        known = copied if owner == lane else 0
        copy = self._block(self.slots[slab], self._lanes)
        if known < length:
            source = self._column(slab, lane, known, length)
            self.memory.move_rows(source.array, [source.column], copy[known:length], 0)
        if copied > length:
            self.memory.clear(copy[length:copied])
        self._copied[slab] = lane, length

    def arrays(self, slab: int, places: range, slots: range, rows: int) -> tuple[Array, Array]:
        width = len(places)
        start = places.start * self.capacity + slots.start * width
        past = self.slots[slab][start : start + len(slots) * width]
        new = self.scratch[slab][: rows * width]
        return past.reshape(len(slots), width, *self._row), new.reshape(rows, width, *self._row)

    def commit(self, lane: int, rows: Sequence[int]) -> None:
        length = self.lengths[lane]
        end = length + len(rows)
        if end > self.capacity:
            raise ValueError(
                f"commit of {len(rows)} rows at {length} exceeds the capacity of {self.capacity}"
            )
        move, width, column = self.memory.move_rows, self._width, self._columns[lane]
        given = [row * width + column for row in rows]
        if not self._in_bucket(lane):
            move(self.scratch, given, self.slots, lane * self.capacity + length)
        elif len(rows) > self._slabs and rows[-1] - rows[0] == len(rows) - 1:  # a piece of a prompt
            for slab in range(self._slabs):
                new = self.scratch[slab][rows[0] * width : (rows[-1] + 1) * width]
                target = self._column(slab, lane, length, end)
                move(new.reshape(len(rows), width, *self._row), [column], target.array, target.column)
        else:
            for slot, row in enumerate(given, length):
                move(self.scratch, [row], self.slots, slot * self._bucket + lane)
        self.lengths[lane] = end
        self._written[lane] = max(self._written[lane], end)
        row_bytes = self._slabs * math.prod(self._row) * self.slots.dtype.itemsize
        self.moved_bytes += len(rows) * row_bytes

    def rewind(self, lane: int, length: int) -> None:
        """Slots beyond become zeros: what a request left there may not be finite."""
        written = self._written[lane]
        if written > length:
            if self._in_bucket(lane):
                for slab in range(self._slabs):
                    self._clear_column(self._column(slab, lane, length, written))
            else:
                start = lane * self.capacity
                self.memory.clear_slots(self.slots, start + length, start + written)
            self._written[lane] = length
        self.lengths[lane] = length
        self._copied = [(None if owner == lane else owner, slots) for owner, slots in self._copied]

    def swap(self, lane: int, other: int) -> None:
        move = self.memory.move_rows
        slots = max(self._written[lane], self._written[other])
        for slab in range(self._slabs) if slots else ():
            one, two = (self._column(slab, each, 0, slots) for each in (lane, other))
            spare = self._spare_block(0)[:slots]
            move(one.array, [one.column], spare, 0)
            move(two.array, [two.column], one.array, one.column)
            move(spare, [0], two.array, two.column)
        for state in (self.lengths, self._written, self._columns):
            state[lane], state[other] = state[other], state[lane]
        renamed = {lane: other, other: lane}
        self._copied = [(renamed.get(owner, owner), slots) for owner, slots in self._copied]

    def shrink(self, tokens: int) -> None:
        return  # a pass sees no more slots than are in use

    def clear(self) -> None:
        self.memory.clear(self.slots)
        self._forget()

    def fill(self, rng: np.random.Generator, length: int) -> None:
        self.clear()
        for slab in range(self._slabs):
            for lane in range(self._lanes):
                target = self._block(self.slots[slab], lane)[:length]
                noise = 0.1 * rng.standard_normal(target.shape, np.float32)
                self.memory.write(target, to_storage(noise, target.dtype))
        self.lengths = [length] * self._lanes
        self._written = [length] * self._lanes

    def _lay_out(self, bucket: int) -> None:
        """Lay the lanes out for another bucket: out of the slab as far as they are written, and back."""
        before, self._bucket = self._bucket, bucket
        if before == bucket:
            return
        written = [(lane, slots) for lane, slots in enumerate(self._written) if slots]
        for slab in range(self._slabs):
            for lane, slots in written:
                there = self._column(slab, lane, 0, slots, before)
                self.memory.move_rows(there.array, [there.column], self._spare_block(lane)[:slots], 0)
                self._clear_column(there)
            for lane, slots in written:
                here = self._column(slab, lane, 0, slots)
                self.memory.move_rows(self._spare_block(lane)[:slots], [0], here.array, here.column)

    def _clear_column(self, place: _Column) -> None:
        self.memory.clear_slots(place.array, place.column, place.column + 1)

    def _column(self, slab: int, lane: int, start: int, stop: int, bucket: int | None = None) -> _Column:
        """Slots [start, stop) of a lane. bucket: as the slabs lay before."""
        bucket = bucket or self._bucket
        every = self.slots[slab]
        if bucket == 1 or lane >= bucket:
            return _Column(self._block(every, lane)[start:stop], 0)
        side_by_side = every[: bucket * self.capacity].reshape(self.capacity, bucket, *self._row)
        return _Column(side_by_side[start:stop], lane)

    def _spare_block(self, place: int) -> Array:
        if self._spare is None:
            shape = (self._lanes * self.capacity, *self._row)
            self._spare = self.memory.zeros(shape, self.slots.dtype, "lanes that move")
        return self._block(self._spare, place)

    def _block(self, array: Array, place: int) -> Array:
        """A place of its own in a slab, [S, 1, Hkv, Dh]."""
        start = place * self.capacity
        return array[start : start + self.capacity].reshape(self.capacity, 1, *self._row)


def prefix_rows(size: CacheSize) -> int:
    """Rows of slabs that such a cache takes: of all places, the scratch, and lanes that move."""
    places, moved = (1, 0) if size.lanes == 1 else (size.lanes + 1, size.lanes)
    return (size.slabs * places + moved) * size.capacity + size.slabs * size.rows
