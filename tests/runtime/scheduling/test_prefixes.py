"""Blocks that are shared: a hit is the same text, and the least recently used leaf goes first."""

import random

import numpy as np

from firp.runtime.scheduling.prefixes import BLOCK, Prefixes

BYTES = 4 * BLOCK


def block_of(tokens, start):
    """What stands for the keys and values of a block: its tokens, and all before them."""
    values = np.zeros(BLOCK, np.float32)
    values[:] = hash(tuple(tokens[: start + BLOCK])) % 10_007
    return values


def add(prefixes, tokens):
    prefixes.add(tokens, lambda start, stop: block_of(tokens, start))


def test_a_hit_is_the_longest_known_beginning():
    prefixes = Prefixes(100 * BYTES)
    text = list(range(200))
    add(prefixes, text)
    assert len(prefixes.longest(text)) == 3
    assert len(prefixes.longest(text[:191])) == 2
    other = text[:BLOCK] + [7] * 100
    assert len(prefixes.longest(other)) == 1
    assert prefixes.longest([7] * 100) == []
    np.testing.assert_array_equal(prefixes.longest(text)[2], block_of(text, 2 * BLOCK))


def test_what_a_lane_holds_already_is_no_hit():
    prefixes = Prefixes(100 * BYTES)
    add(prefixes, list(range(200)))
    assert prefixes.longest(list(range(200)), beyond=192) == []
    assert len(prefixes.longest(list(range(200)), beyond=191)) == 3
    assert (prefixes.stats.lookups, prefixes.stats.hits, prefixes.stats.tokens) == (2, 1, 1)


def test_without_memory_nothing_is_kept():
    prefixes = Prefixes(0)
    add(prefixes, list(range(200)))
    assert prefixes.longest(list(range(200))) == []


def test_random_use_agrees_with_a_list_of_texts():
    """No block is another text's, the limit holds, and whatever is kept hangs together."""
    rng = random.Random(0)
    prefixes = Prefixes(12 * BYTES)
    known: set[tuple[int, ...]] = set()
    for _ in range(2000):
        text = [rng.randrange(2) for _ in range(3) for _ in range(1)]
        text = [value for value in text for _ in range(BLOCK)] + [9] * rng.randrange(BLOCK)
        if rng.random() < 0.5:
            add(prefixes, text)
            known |= {tuple(text[:end]) for end in range(BLOCK, len(text) + 1, BLOCK)}
        found = prefixes.longest(text)
        for place, block in enumerate(found):
            np.testing.assert_array_equal(block, block_of(text, place * BLOCK))
            assert tuple(text[: (place + 1) * BLOCK]) in known
        assert prefixes.stats.bytes <= 12 * BYTES
    assert prefixes.stats.evictions > 0
    prefixes.clear()
    assert prefixes.stats.bytes == 0


def test_the_leaf_used_least_recently_goes_first():
    prefixes = Prefixes(4 * BYTES)
    first, second, third = ([n] * BLOCK * 2 for n in (1, 2, 3))
    add(prefixes, first)
    add(prefixes, second)
    prefixes.longest(first)
    add(prefixes, third[:BLOCK])
    assert len(prefixes.longest(first)) == 2
    assert len(prefixes.longest(second)) == 1  # its leaf went, not its beginning
