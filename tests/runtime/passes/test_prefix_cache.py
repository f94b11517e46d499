"""The cache keeps the rows that were accepted, in their order, and nothing beyond its capacity."""

import numpy as np
import pytest

from firp.runtime.backends.host import HostMemory
from firp.runtime.passes.cache_view import CacheSize
from firp.runtime.passes.prefix_cache import PrefixCache

SLABS = 4  # keys and values of two layers
ROW_BYTES = 3 * 5 * 4
ONE = range(1)


@pytest.fixture
def cache():
    """4 tokens, passes of 3 rows, whose keys and values differ everywhere."""
    cache = PrefixCache(HostMemory(), CacheSize(2, 4, 3, 3, 5, np.dtype(np.float32)))
    cache.scratch[...] = np.arange(cache.scratch.size).reshape(cache.scratch.shape)
    return cache


def test_accepted_rows_are_appended_in_their_order(cache):
    cache.commit(0, [1])
    cache.commit(0, [2, 0])
    assert cache.lengths[0] == 3
    np.testing.assert_array_equal(cache.slots[:, :3], cache.scratch[:, [1, 2, 0]])


def test_other_rows_leave_nothing(cache):
    cache.commit(0, [1])
    assert not cache.slots[:, 1:].any()


def test_commits_count_the_bytes_they_move(cache):
    cache.commit(0, [0, 2])
    cache.commit(0, [1])
    assert cache.moved_bytes == 3 * SLABS * ROW_BYTES


def test_a_commit_beyond_the_capacity_changes_nothing(cache):
    cache.commit(0, [0, 1, 2])
    before = cache.slots.copy()
    with pytest.raises(ValueError, match="commit of 2 rows at 3 exceeds the capacity of 4"):
        cache.commit(0, [0, 1])
    assert cache.lengths[0] == 3
    np.testing.assert_array_equal(cache.slots, before)


def test_a_full_cache_holds_its_capacity(cache):
    cache.commit(0, [0, 1, 2])
    cache.commit(0, [0])
    assert cache.lengths[0] == cache.capacity


def test_graphs_see_the_slots_in_use(cache):
    cache.commit(0, [2, 1])
    assert cache.view(ONE, 3) == (2, 5, (2,))
    np.testing.assert_array_equal(cache.arrays(3, ONE, 2, 1)[0], cache.scratch[3, [2, 1]])


def test_what_a_graph_writes_is_what_a_commit_keeps(cache):
    cache.arrays(1, ONE, 0, 2)[1][...] = -1
    cache.commit(0, [0])
    assert (cache.slots[1, :1] == -1).all()
    assert (cache.slots[0, :1] >= 0).all()


def test_a_cleared_cache_is_empty(cache):
    cache.commit(0, [0, 1])
    cache.clear()
    assert cache.lengths[0] == 0
    assert not cache.slots.any()


def test_noise_to_time_with_fills_no_more_than_asked(cache):
    cache.fill(np.random.default_rng(0), 2)
    assert cache.lengths[0] == 2
    assert cache.slots[:, :2].all()
    assert not cache.slots[:, 2:].any()
