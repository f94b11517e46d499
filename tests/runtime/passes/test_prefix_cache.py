"""The cache keeps the rows that were accepted, in their order, and nothing beyond its capacity; lanes
that run together, alone, or change places keep theirs.
"""

import numpy as np
import pytest
from support.cache_model import CacheModel
from support.cuda_double import CudaDouble

from firp.runtime.backends.cuda import CudaMemory
from firp.runtime.backends.host import HostMemory
from firp.runtime.passes.cache_view import CacheSize
from firp.runtime.passes.prefix_cache import PrefixCache

SLABS = 4  # keys and values of two layers
ROW_BYTES = 3 * 5 * 4
ONE = range(1)


@pytest.fixture
def cache():
    """4 tokens, passes of 3 rows, whose keys and values differ everywhere."""
    cache = PrefixCache(HostMemory(), CacheSize(4, 4, 3, 3, 5, np.dtype(np.float32)))
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
    assert cache.view(ONE, 3) == ((range(2), 5), (2,), ONE)
    np.testing.assert_array_equal(cache.arrays(3, ONE, range(2), 1)[0][:, 0], cache.scratch[3, [2, 1]])


def test_what_a_graph_writes_is_what_a_commit_keeps(cache):
    cache.arrays(1, ONE, range(0), 2)[1][...] = -1
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


SEVERAL = CacheSize(4, 9, 32, 3, 5, np.dtype(np.float32), 5)


@pytest.fixture(params=["host", "cuda"])
def several(request):
    memory = HostMemory() if request.param == "host" else CudaMemory(CudaDouble())
    return CacheModel(PrefixCache(memory, SEVERAL), SEVERAL)


@pytest.mark.parametrize(("together", "places"), [(2, range(2)), (3, range(4)), (4, range(4)), (5, range(5))])
def test_lanes_that_run_together_fill_a_bucket(several, together, places):
    for lane in range(SEVERAL.lanes):
        several.run(range(lane, lane + 1), 2 + lane % 2)
        several.commit(lane, range(2 + lane % 2))
    view = several.run(range(together), 2)
    assert view.places == places
    assert view.first == (len(view.seen.slots),) * len(places)
    several.commit(1, [0])
    several.commit(0, [1])
    several.run(range(together), 1)
    assert several.cache.lengths == several.lengths


def test_a_lane_of_the_bucket_runs_alone_on_a_copy_that_is_kept(several):
    several.run(range(2), 3)
    for lane in (0, 1):
        several.commit(lane, [0, 2])
    alone, last = range(1, 2), range(SEVERAL.lanes, SEVERAL.lanes + 1)
    assert several.run(alone, 5).places == last
    several.commit(1, range(5))  # longer than there are slabs: a piece of a prompt
    several.run(alone, 1)
    several.commit(1, [0])
    several.rewind(1, 4)
    several.run(alone, 1)
    several.run(range(1), 1)
    several.run(range(2), 1)
    assert several.run(range(3, 4), 1).places == range(3, 4)
    assert several.cache.lengths == several.lengths


def test_other_lanes_than_the_first_do_not_run_together(several):
    with pytest.raises(ValueError, match="run together: expected the first ones"):
        several.run(range(1, 3), 1)


def test_what_is_not_finite_is_seen_by_nobody_else(several):
    """Device memory begins as NaN, and so does every row that no lane's graph wrote."""
    several.run(range(1), 4)
    several.commit(0, range(4))
    cache, nan = several.cache, np.full((4, 1, 3, 5), np.nan, np.float32)
    for slab in range(4):
        several.memory.write(cache.arrays(slab, range(1), range(4), 4)[0], nan)
    cache.swap(0, 2)
    cache.rewind(2, 0)
    several.held = [[] for _ in several.held]
    for lanes in (range(3), range(2, 3), range(5)):
        several.memory.slots_in_view = lambda first, cached, capacity: range(capacity)
        several.run(lanes, 1)


def test_cleared_and_filled_lanes_are_all_alike(several):
    several.run(range(3), 1)
    several.commit(2, [0])
    several.cache.fill(np.random.default_rng(0), 6)
    assert several.cache.lengths == [6] * SEVERAL.lanes
    several.cache.clear()
    several.held = [[] for _ in several.held]
    several.run(range(5), 1)
    assert not several.host(several.cache.slots).any()
