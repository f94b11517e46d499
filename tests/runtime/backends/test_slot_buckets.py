"""Sizes and addresses that graphs are shown are few, and little more than a pass needs."""

import pytest

from firp.runtime.backends.slot_buckets import bucketed_slots, most_slots


def test_buckets_are_few_and_little_too_large():
    views = [bucketed_slots(0, cached, 5000) for cached in range(1, 5001)]
    assert all(view.start == 0 and cached <= view.stop for cached, view in enumerate(views, 1))
    assert views[-1] == range(5000)
    assert all(view.stop - cached < max(64, cached / 4) for cached, view in enumerate(views, 1))
    assert len(set(views)) < 32
    assert bucketed_slots(0, 0, 5000) == range(0)


@pytest.mark.parametrize("capacity", [1, 63, 64, 65, 1000, 4096, 5000])
@pytest.mark.parametrize("window", [1, 2, 7, 64, 65, 511, 512, 4096, 10_000])
def test_windows_are_in_view_and_few(window, capacity):
    views = []
    for cached in range(capacity + 1):
        first = max(0, cached - window + 1)
        views.append(bucketed_slots(first, cached, capacity))
        assert views[-1].start <= first
        assert cached <= views[-1].stop <= capacity
        assert len(views[-1]) <= most_slots(window, capacity)
    assert len(set(views)) <= 40
    if window <= capacity / 4 and capacity >= 1000:
        assert most_slots(window, capacity) < capacity / 2


def test_slots_of_windows_end_where_all_slots_end():
    """So a graph that reads both has no more sizes for it."""
    for cached in range(1, 5001):
        assert bucketed_slots(max(0, cached - 511), cached, 5000).stop == bucketed_slots(0, cached, 5000).stop
