"""The keys and values of sequences that decode together: what a batch asks of them, by whichever
contract its graphs keep (`firp.runtime.bundle.graph_spec`).

In: passes over neighbouring lanes, one sequence a lane. Out: the arrays that a graph reads and
writes for each slab: slab 2i holds the keys of layer i, slab 2i + 1 its values; latent rows take
a slab a layer. Slots [0, length) of
a lane are its decided tokens, whole at all times; slot s belongs to position s. Nothing that was
rejected is ever visible.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from firp.runtime.backends.interface import Array, Memory
from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.format import Manifest
from firp.runtime.bundle.graph_spec import IN_PLACE
from firp.runtime.passes.cache_view import CacheSize, View
from firp.runtime.passes.in_place_cache import InPlaceCache, in_place_rows
from firp.runtime.passes.pass_shape import BatchSize
from firp.runtime.passes.prefix_cache import PrefixCache, prefix_rows


class KVCache(Protocol):
    """Slabs of all lanes."""

    capacity: int  # tokens that each lane may hold
    most: int  # slots that each lane has memory for
    lengths: list[int]  # P of each lane: tokens that it holds
    moved_bytes: int  # by commits since the cache was made

    def reserve(self, lanes: range, rows: int) -> None:
        """Make room for a pass of so many rows after the cached tokens of each lane."""

    def prepare(self, lane: int, rows: int, in_time: Callable[[], bool]) -> bool:
        """Whether memory for so many rows after a lane's tokens is ready for `reserve`. Where it is not, some
        of it is made ready, and more while there is time.
        """

    def view(self, lanes: range, rows: int, window: int | None = None) -> View:
        """What a pass of so many rows a lane sees, in layers with this window."""

    def begin(self, slabs: range, lanes: range, rows: int) -> None:
        """A graph is about to write so many rows into these slabs of these lanes."""

    def arrays(self, slab: int, places: range, slots: range, rows: int) -> tuple[Array, Array]:
        """The input and the output of a graph for one slab. places, slots: of a `View`."""

    def commit(self, lane: int, rows: Sequence[int]) -> None:
        """Append these rows of the last pass, ascending; the others are forgotten with the next pass, of
        whichever lane. Raises ValueError beyond the capacity.
        """

    def rewind(self, lane: int, length: int) -> None:
        """Keep the first `length` cached tokens of a lane alone."""

    def swap(self, lane: int, other: int) -> None:
        """Let two lanes change places."""

    def shrink(self, tokens: int) -> None:
        """See no more slots than a text of so many tokens needs; longer texts may be forgotten."""

    def clear(self) -> None:
        """Forget everything."""

    def fill(self, rng: np.random.Generator, length: int) -> None:
        """Put noise in the first `length` slots of all lanes, to time passes with."""


def size_for(manifest: Manifest, size: BatchSize) -> CacheSize:
    """The cache of a batch."""
    model = manifest.model
    heads, dtype = model.attention.num_key_value_heads, DTYPES[manifest.precision.cache].storage
    row = heads, model.attention.head_dim, dtype
    return CacheSize(model.slabs, size.capacity, size.rows, *row, size.lanes, size.lane_rows)


def cache_bytes(contract: str, size: CacheSize) -> int:
    """Memory that a cache takes, by the contract: all that it ever asks for."""
    rows = in_place_rows(size) if contract == IN_PLACE else prefix_rows(size)
    return rows * size.heads * size.head_dim * size.dtype.itemsize


def make_cache(contract: str, memory: Memory, size: CacheSize) -> KVCache:
    """An empty cache by the contract."""
    return InPlaceCache(memory, size) if contract == IN_PLACE else PrefixCache(memory, size)
