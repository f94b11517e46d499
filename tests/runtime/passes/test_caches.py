"""Whatever lanes do, a cache of either contract holds what lists of rows hold."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from support.cache_model import CacheModel
from support.cuda_double import CudaDouble

from firp.runtime.backends.cuda import CudaMemory
from firp.runtime.backends.host import HostMemory
from firp.runtime.bundle.graph_spec import IN_PLACE, PREFIX
from firp.runtime.passes.cache_view import CacheSize
from firp.runtime.passes.kv_cache import make_cache

SIZES = {
    PREFIX: CacheSize(4, 9, 32, 3, 5, np.dtype(np.float32), 5),
    IN_PLACE: CacheSize(2, 250, 120, 2, 2, np.dtype(np.float32), 3),  # of several steps of slots
}


@some.composite
def steps(draw, model):
    """A pass of neighbouring lanes, and what its requests make of it."""
    size, lanes = model.size, range(model.size.lanes)
    count = draw(some.integers(1, size.lanes))
    first = draw(some.integers(0, size.lanes - 1)) if count == 1 else 0
    ran = range(first, first + count)
    rows = draw(some.integers(1, min(size.rows, size.capacity) // count))
    for lane in ran:
        held = len(model.held[lane])
        if held + rows > size.capacity or draw(some.integers(0, 5)) == 0:
            model.rewind(lane, draw(some.integers(0, min(held, size.capacity - rows))))
    if draw(some.integers(0, 3)) == 0:
        model.shrink(draw(some.integers(0, size.capacity)))
    kept = {lane: draw(some.sets(some.integers(0, rows - 1), max_size=rows)) for lane in ran}
    model.run(ran, rows, kept)
    if draw(some.integers(0, 3)) == 0:  # a request ends before those after it have committed
        model.swap(draw(some.sampled_from(lanes)), draw(some.sampled_from(lanes)))
    for lane, given_rows in list(model.given.items()):
        model.commit(lane, np.flatnonzero(np.isfinite(given_rows)).tolist())
    assert model.cache.lengths == model.lengths


@pytest.mark.parametrize("contract", SIZES)
@pytest.mark.parametrize("memory", ["host", "cuda"])
@settings(max_examples=12)
@given(data=some.data())
def test_lanes_hold_what_lists_hold(contract, memory, data):
    where = HostMemory() if memory == "host" else CudaMemory(CudaDouble())
    model = CacheModel(make_cache(contract, where, SIZES[contract]), SIZES[contract])
    for _ in range(data.draw(some.integers(1, 25))):
        data.draw(steps(model))


@settings(max_examples=20)
@given(lengths=some.lists(some.integers(0, 250), min_size=3, max_size=3), more=some.integers(0, 2))
def test_a_larger_cache_takes_over_what_another_holds(lengths, more):
    size = SIZES[IN_PLACE]
    model = CacheModel(make_cache(IN_PLACE, HostMemory(), size), size)
    for lane, length in enumerate(lengths):
        for rows in (length // 2, length - length // 2):
            model.run(range(lane, lane + 1), max(rows, 1))
            model.commit(lane, range(rows))
    larger = size._replace(lanes=size.lanes + more, capacity=300)
    grown = CacheModel(make_cache(IN_PLACE, HostMemory(), larger), larger)
    grown.cache.adopt(model.cache)
    grown.held[: size.lanes] = model.held
    grown.run(range(larger.lanes), 2)
    assert grown.cache.lengths == grown.lengths


@settings(max_examples=20)
@given(length=some.integers(0, 200), data=some.data())
def test_slots_that_were_read_go_into_another_lane(length, data):
    size = SIZES[IN_PLACE]
    model = CacheModel(make_cache(IN_PLACE, HostMemory(), size), size)
    for start in range(0, length, 100):
        rows = min(100, length - start)
        model.run(range(1), rows)
        model.commit(0, range(rows))
    cuts = sorted(data.draw(some.sets(some.integers(0, length), max_size=4)) | {0, length})
    for start, stop in itertools.pairwise(cuts):
        model.cache.append(2, model.cache.read(0, start, stop))
    model.held[2] = list(model.held[0])
    model.rewind(0, 0)
    model.run(range(3), 3)
    assert model.cache.lengths == model.lengths
