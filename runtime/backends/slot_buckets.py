"""Which cached slots a graph is shown, so that few sizes and addresses occur and CUDA graphs, which keep
both, can be replayed.

In: the slots that a pass needs. Out: a range that holds them. Whoever builds plans asks how large it gets.
"""

_SMALLEST_STEP = 64  # slots


def bucketed_slots(first: int, cached: int, capacity: int) -> range:
    """Slots [first, cached), and those around them. They end at a multiple of 64, or of an eighth to a
    quarter of their number where that is more, and begin at a multiple of the largest such step.
    """
    largest = _largest_step(capacity)
    step = min(max(_SMALLEST_STEP, 1 << max(0, cached.bit_length() - 3)), largest)
    return range(first // largest * largest, min(-(-cached // step) * step, capacity))


def most_slots(window: int, capacity: int) -> int:
    """The most slots that are shown of one sequence where rows have a window."""
    largest = _largest_step(capacity)
    return min(-(-(window + largest - 2) // largest) * largest, capacity)


def _largest_step(capacity: int) -> int:
    """A sixteenth to an eighth of the slots that a sequence may have."""
    return max(_SMALLEST_STEP, 1 << max(0, (capacity - 1).bit_length() - 4))
