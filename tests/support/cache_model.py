"""What lanes of a cache hold, kept as lists: the slow and obvious cache.

A row is told apart by a number; in slab s all values of a row are its number and s / 8.
"""

import numpy as np

from firp.runtime.passes.in_place_cache import InPlaceCache

WINDOWS = (1, 3)


class CacheModel:
    """A cache beside lists. held: numbers of the rows that each lane has decided."""

    def __init__(self, cache, size):
        self.cache, self.size, self.memory = cache, size, cache.memory
        self.held = [[] for _ in range(size.lanes)]
        self.next = 1
        self.given = {}  # of each lane of the last pass: its rows
        self._in_place = isinstance(cache, InPlaceCache)

    def host(self, array):
        """The values of an array, wherever they lie."""
        return np.array(self.memory.read(array)[0])

    def run(self, lanes, rows, kept=None):
        """A pass: graphs see what the lanes hold, finite values after it, and write numbered rows. kept:
        rows of each lane that will be committed, the others are not finite; None: all rows are.
        """
        cache = self.cache
        cache.reserve(lanes, rows)
        view = cache.view(lanes, rows)
        slabs = range(self.size.slabs)
        cache.begin(slabs, lanes, rows)
        self.given = {
            lane: [
                self.next + column * rows + row if kept is None or row in kept[lane] else np.nan
                for row in range(rows)
            ]
            for column, lane in enumerate(lanes)
        }
        self.next += rows * len(lanes)
        for slab in slabs:
            past, new = cache.arrays(slab, view.places, view.seen.slots, rows)
            seen = self._by_lane(self.host(past))
            assert seen.shape == (len(view.places), len(view.seen.slots), *self._row)
            written = seen.copy() if self._in_place else np.full((len(seen), rows, *self._row), np.nan)
            for column, lane in enumerate(lanes):
                held = self.held[lane]
                np.testing.assert_array_equal(seen[column, : len(held)], self._values(held, slab))
                start = view.first[column] if self._in_place else 0
                if self._in_place:
                    seen[column, start : start + rows] = 0  # is written before it is read
                written[column, start : start + rows] = self._values(self.given[lane], slab)
            assert np.isfinite(seen).all()
            self.memory.write(new, self._as_laid(written).astype(np.float32))
        for window in WINDOWS:
            self._look_through(window, lanes, rows)
        return view

    def _look_through(self, window, lanes, rows):
        """Layers with a window see the last rows that the lanes hold, and finite values."""
        view = self.cache.view(lanes, rows, window)
        for slab in range(self.size.slabs):
            past, _ = self.cache.arrays(slab, view.places, view.seen.slots, rows)
            seen = self._by_lane(self.host(past))
            assert self._in_place or np.isfinite(seen).all()
            for column, lane in enumerate(lanes):
                held = self.held[lane]
                assert view.seen.slots.start <= max(0, len(held) - window + 1)
                last = held[view.seen.slots.start :]
                np.testing.assert_array_equal(seen[column, : len(last)], self._values(last, slab))

    @property
    def _row(self):
        return self.size.heads, self.size.head_dim

    def _values(self, numbers, slab):
        """Rows [n, Hkv, Dh] of these numbers."""
        rows = np.array(numbers, np.float32)[:, None, None] + slab / 8
        return np.broadcast_to(rows, (len(numbers), *self._row))

    def _by_lane(self, array):
        """[lanes, slots, Hkv, Dh], of either contract."""
        return array.transpose(0, 2, 1, 3) if self._in_place else array.transpose(1, 0, 2, 3)

    _as_laid = _by_lane  # either transposition is its own inverse

    def commit(self, lane, rows):
        self.cache.commit(lane, rows)
        self.held[lane] += [self.given[lane][row] for row in rows]

    def rewind(self, lane, length):
        self.cache.rewind(lane, length)
        del self.held[lane][length:]

    def swap(self, lane, other):
        self.cache.swap(lane, other)
        self.held[lane], self.held[other] = self.held[other], self.held[lane]
        pair = self.given.pop(lane, None), self.given.pop(other, None)
        self.given |= {place: rows for place, rows in ((other, pair[0]), (lane, pair[1])) if rows is not None}

    def shrink(self, tokens):
        """Texts that are longer may be forgotten, and nothing else."""
        self.cache.shrink(tokens)
        for held, length in zip(self.held, self.cache.lengths, strict=True):
            if length < len(held):
                assert (length, len(held) > tokens) == (0, True)
                held.clear()

    @property
    def lengths(self):
        """Tokens that each lane holds."""
        return [len(held) for held in self.held]
