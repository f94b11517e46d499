"""Buffers in which graphs write: decided slots stay whole, and nothing that was rejected is left."""

import numpy as np
import pytest
from support.cuda_double import CudaDouble

from firp.runtime.backends.cuda import CudaMemory
from firp.runtime.backends.host import HostMemory
from firp.runtime.passes.cache_view import CacheSize
from firp.runtime.passes.in_place_cache import STEP, InPlaceCache

LAYERS, HEADS, HEAD_DIM = 2, 3, 5
SLABS = range(2 * LAYERS)
ONE = range(1)


def host(memory, array):
    """The values of an array, wherever they lie."""
    return np.array(memory.read(array)[0])


def write(cache, rows, value):
    """What a graph does in a pass: rows of these values after the cached tokens."""
    cache.reserve(ONE, rows)
    cache.begin(SLABS, ONE, rows)
    for slab in SLABS:
        buffer, given = cache.arrays(slab, ONE, cache.view(ONE, rows).seen.slots, rows)
        assert buffer is given
        whole = host(cache.memory, buffer)
        start = cache.view(ONE, rows).first[0]
        whole[:, :, start : start + rows] = value + slab + np.arange(rows)[:, None] / 100
        cache.memory.write(buffer, whole)


@pytest.fixture(params=["host", "cuda"])
def cache(request):
    memory = HostMemory() if request.param == "host" else CudaMemory(CudaDouble())
    return InPlaceCache(memory, CacheSize(2 * LAYERS, 300, 8, HEADS, HEAD_DIM, np.dtype(np.float32)))


def slots(cache, count):
    """The first slots of every head, [2N, Hkv, count]; all values of a slot are alike here."""
    found = host(cache.memory, cache.slots)[:, 0, :, :count]
    assert (found == found[..., :1]).all()
    return found[..., 0]


def expected(*values):
    return np.broadcast_to(
        np.array(values, np.float32) + np.arange(2 * LAYERS, dtype=np.float32)[:, None, None],
        (2 * LAYERS, HEADS, len(values)),
    )


def test_a_chain_moves_nothing(cache):
    write(cache, 3, 10)
    cache.commit(0, [0, 1, 2])
    assert cache.lengths[0] == 3
    assert cache.moved_bytes == 0
    np.testing.assert_allclose(slots(cache, 3), expected(10, 10.01, 10.02))


def test_the_accepted_path_of_a_tree_closes_up(cache):
    write(cache, 8, 10)
    cache.commit(0, [0, 1, 4, 5, 7])
    np.testing.assert_allclose(slots(cache, 5), expected(10, 10.01, 10.04, 10.05, 10.07))
    assert cache.moved_bytes == 3 * 2 * LAYERS * HEADS * HEAD_DIM * 4


def test_the_next_pass_follows_the_accepted_rows(cache):
    write(cache, 4, 10)
    cache.commit(0, [0, 2])
    write(cache, 2, 50)
    cache.commit(0, [0, 1])
    np.testing.assert_allclose(slots(cache, 4), expected(10, 10.02, 50, 50.01))


def test_rejected_rows_are_gone_before_the_next_pass(cache):
    write(cache, 8, np.nan)
    cache.commit(0, [])
    write(cache, 2, 10)
    found = slots(cache, cache.view(ONE, 2).seen.columns)
    np.testing.assert_allclose(found[..., :2], expected(10, 10.01))
    assert not found[..., 2:].any()


def test_growth_keeps_every_decided_value_and_adds_zeros(cache):
    for step in range(30):
        write(cache, 8, 10 * step)
        cache.commit(0, [0, 1, 2, 3])
    steps = [10 * step + row / 100 for step in range(30) for row in range(4)]
    assert cache.view(ONE, 1).seen.columns == 2 * STEP
    np.testing.assert_allclose(slots(cache, 120), expected(*steps), rtol=1e-6)
    cache.begin(SLABS, ONE, 0)
    assert not slots(cache, 2 * STEP)[..., 120:].any()


def test_buffers_are_as_long_as_the_text_needs(cache):
    assert cache.view(ONE, 1).seen.columns == 0
    cache.reserve(ONE, 1)
    assert cache.view(ONE, 1) == ((range(STEP), STEP), (0,), ONE)
    cache.reserve(ONE, STEP + 1)
    assert cache.view(ONE, 1).seen.columns == 2 * STEP


def test_a_commit_beyond_the_capacity_changes_nothing(cache):
    cache.fill(np.random.default_rng(0), 299)
    write(cache, 2, 10)
    before = host(cache.memory, cache.slots)
    with pytest.raises(ValueError, match="commit of 2 rows at 299 exceeds the capacity of 300"):
        cache.commit(0, [0, 1])
    assert cache.lengths[0] == 299
    np.testing.assert_array_equal(host(cache.memory, cache.slots), before)


def test_a_full_cache_still_takes_a_pass(cache):
    cache.fill(np.random.default_rng(0), 300)
    cache.reserve(ONE, 8)
    with pytest.raises(ValueError, match="slots exceed"):
        cache.reserve(ONE, 100)


def test_a_rewound_cache_keeps_what_comes_before(cache):
    write(cache, 4, 10)
    cache.commit(0, [0, 1, 2, 3])
    cache.rewind(0, 2)
    write(cache, 1, 50)
    cache.commit(0, [0])
    np.testing.assert_allclose(slots(cache, 3), expected(10, 10.01, 50))
    assert not slots(cache, STEP)[..., 3:].any()


def test_a_cleared_cache_is_empty(cache):
    write(cache, 4, 10)
    cache.commit(0, [0, 1])
    cache.clear()
    assert cache.lengths[0] == 0
    assert not slots(cache, STEP).any()


def test_noise_to_time_with_fills_no_more_than_asked(cache):
    cache.fill(np.random.default_rng(0), 70)
    found = host(cache.memory, cache.slots)
    assert cache.lengths[0] == 70
    assert found[..., :70, :].all()
    assert not found[..., 70:, :].any()


def test_lanes_grow_together_and_change_places():
    cache = InPlaceCache(
        HostMemory(), CacheSize(2 * LAYERS, 300, 8, HEADS, HEAD_DIM, np.dtype(np.float32), 3)
    )
    for lane, value in ((0, 10), (1, 20), (2, 30)):
        lanes = range(lane, lane + 1)
        for step in range(1 + 20 * lane):
            cache.reserve(lanes, 4)
            cache.begin(SLABS, lanes, 4)
            for slab in SLABS:
                start = cache.lengths[lane]
                cache.arrays(slab, lanes, range(0), 4)[0][0, :, start : start + 4] = value + slab + step
            cache.commit(lane, [0, 1, 2, 3])
    cache.swap(0, 2)
    assert cache.lengths == [164, 84, 4]
    values = cache.slots[:, :, 0, :, 0]  # [slabs, lanes, S]
    np.testing.assert_array_equal(values[1, :, 0], [31, 21, 11])
    np.testing.assert_array_equal(values[1, :, 83], [51, 41, 0])
    grown = InPlaceCache(
        HostMemory(), CacheSize(2 * LAYERS, 500, 8, HEADS, HEAD_DIM, np.dtype(np.float32), 4)
    )
    grown.adopt(cache)
    np.testing.assert_array_equal(grown.slots[:, :3], cache.slots)
    assert grown.lengths == [164, 84, 4, 0]


def test_a_cache_shrinks_to_short_texts_and_forgets_long_ones(cache):
    write(cache, 8, 10)
    cache.commit(0, [0, 1, 2, 3])
    for _ in range(36):
        write(cache, 8, 20)
        cache.commit(0, [0, 1, 2, 3, 4, 5, 6, 7])
    assert cache.view(ONE, 1).seen.columns == 5 * STEP
    cache.shrink(3 * STEP)  # more than half of it
    assert cache.view(ONE, 1).seen.columns == 5 * STEP
    cache.rewind(0, 4)
    cache.shrink(4)
    assert cache.view(ONE, 1).seen.columns == STEP
    assert cache.lengths == [4]
    write(cache, 2, 50)
    cache.commit(0, [0, 1])
    np.testing.assert_allclose(slots(cache, 6), expected(10, 10.01, 10.02, 10.03, 50, 50.01))
    assert not slots(cache, STEP)[..., 6:].any()
    write(cache, 8, 60)
    cache.commit(0, range(8))
    cache.reserve(ONE, 200)  # grows again, over what was there
    assert not slots(cache, cache.view(ONE, 1).seen.columns)[..., 14:].any()


def test_texts_longer_than_what_is_left_are_forgotten():
    size = CacheSize(2 * LAYERS, 300, 8, HEADS, HEAD_DIM, np.dtype(np.float32), 2)
    cache = InPlaceCache(HostMemory(), size)
    cache.fill(np.random.default_rng(0), 200)
    before = cache.slots[:, 0, :, :50].copy()
    cache.rewind(0, 50)
    cache.shrink(50)
    assert cache.lengths == [50, 0]
    assert cache.slots.shape[3] == STEP
    np.testing.assert_array_equal(cache.slots[:, 0, :, :50], before)


def test_memory_is_made_ready_in_parts_before_it_is_needed():
    touched, turns = [], []

    class Counting(HostMemory):
        def touch(self, array):
            super().touch(array)
            touched.append(array.size)

    def in_time():
        turns.append(0)
        return len(turns) % 3 > 0

    cache = InPlaceCache(Counting(), CacheSize(2 * LAYERS, 900, 8, HEADS, HEAD_DIM, np.dtype(np.float32)))
    write(cache, 8, 10)
    cache.commit(0, range(8))
    before, calls = slots(cache, 8), 0
    while not cache.prepare(0, 700, in_time):
        calls += 1
        assert len(touched) == min(3 * calls, 44)
        assert cache.view(ONE, 1).seen.columns == STEP
    slot = 2 * LAYERS * HEADS * HEAD_DIM
    assert sum(touched) == (12 * STEP - STEP) * slot
    assert max(touched) == 16 * slot
    cache.reserve(ONE, 700)
    np.testing.assert_array_equal(slots(cache, 8), before)
    assert not slots(cache, 700)[..., 8:].any()
    assert cache.prepare(0, 100, lambda: False)  # there is room


def test_the_next_growth_is_touched_while_there_is_room():
    touched = []

    class Counting(HostMemory):
        def touch(self, array):
            super().touch(array)
            touched.append(array.size)

    cache = InPlaceCache(Counting(), CacheSize(2 * LAYERS, 900, 8, HEADS, HEAD_DIM, np.dtype(np.float32)))
    for _ in range(STEP):
        write(cache, 1, 1)
        cache.commit(0, [0])
    step = 2 * LAYERS * HEADS * HEAD_DIM * STEP
    assert sum(touched) == step
    assert max(touched) <= step / 8
