"""Blocks that are shared: a hit is the same text, and the least recently used leaf goes first."""

import numpy as np
from hypothesis import given, strategies

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


class TextsByTime:
    """The slow and obvious trie: every known beginning, and when it was used last."""

    def __init__(self, limit):
        self.limit, self.now, self.evicted = limit, 0, 0
        self.used = {}

    def longest(self, text):
        path = []
        for end in range(BLOCK, len(text) + 1, BLOCK):
            if tuple(text[:end]) not in self.used:
                break
            path.append(tuple(text[:end]))
        self.now += 1
        self.used |= dict.fromkeys(path, self.now)
        return path

    def add(self, text):
        path = self.longest(text)
        for end in range(BLOCK * len(path) + BLOCK, len(text) + 1, BLOCK):
            while len(self.used) == self.limit:
                leaves = [known for known in self.used if self.is_leaf(known) and known not in path]
                if not leaves:
                    return
                del self.used[min(leaves, key=self.used.get)]
                self.evicted += 1
            path.append(tuple(text[:end]))
            self.now += 1
            self.used |= dict.fromkeys(path, self.now)

    def is_leaf(self, known):
        return not any(len(longer) > len(known) and longer[: len(known)] == known for longer in self.used)


TEXTS = strategies.builds(
    lambda blocks, rest: [token for token in blocks for _ in range(BLOCK)] + [9] * rest,
    strategies.lists(strategies.integers(0, 2), max_size=4),
    strategies.integers(0, BLOCK - 1),
)


@given(
    strategies.integers(1, 9), strategies.lists(strategies.tuples(strategies.booleans(), TEXTS), max_size=40)
)
def test_blocks_are_those_of_a_dictionary_of_texts(limit, uses):
    """No block is another text's, the limit holds, and the least recently used leaf has gone."""
    prefixes, model = Prefixes(limit * BYTES), TextsByTime(limit)
    for adds, text in uses:
        if adds:
            add(prefixes, text)
            model.add(text)
        found, expected = prefixes.longest(text), model.longest(text)
        assert len(found) == len(expected)
        for place, block in enumerate(found):
            np.testing.assert_array_equal(block, block_of(text, place * BLOCK))
        assert prefixes.stats.bytes == len(model.used) * BYTES
        assert prefixes.stats.evictions == model.evicted
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
