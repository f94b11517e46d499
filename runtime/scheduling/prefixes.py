"""Prefixes that requests share: keys and values of texts that were computed before, in blocks.

In: token ids with the cache of a lane. Out: blocks to copy into another lane. A trie: a block belongs
to the 64 tokens that it holds and to all before them, so a hit is never another text's. Copying is
cheap against computing, so a block is a copy, and no two lanes share memory. Bounded by bytes: the
least recently used leaf goes first.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 64  # tokens

Key = tuple[int, ...]


@dataclass(frozen=True)
class PrefixStats:
    """What prefixes saved so far, and what they hold."""

    lookups: int = 0
    hits: int = 0  # lookups that found a block or more
    tokens: int = 0  # that were copied instead of computed
    bytes: int = 0  # held now
    evictions: int = 0  # blocks


class _Node:
    """One block. parent: None at the root, which holds nothing."""

    def __init__(self, parent: "_Node | None", key: Key, block: np.ndarray | None):
        self.parent = parent
        self.key = key
        self.block = block
        self.children: dict[Key, _Node] = {}


class Prefixes:
    """Blocks of texts, [2N, Hkv, 64, Dh] each. limit: bytes, 0 keeps nothing. Any thread may use it."""

    def __init__(self, limit: int):
        self._limit = limit
        self._root = _Node(None, (), None)
        self._used: OrderedDict[_Node, None] = OrderedDict()  # a parent later than its children
        self._lock = threading.Lock()
        self._lookups = self._hits = self._tokens = self._bytes = self._evictions = 0

    @property
    def stats(self) -> PrefixStats:
        """Counts so far."""
        with self._lock:
            return PrefixStats(self._lookups, self._hits, self._tokens, self._bytes, self._evictions)

    def longest(self, tokens: Sequence[int], beyond: int = 0) -> list[np.ndarray]:
        """Blocks of the longest known beginning of these tokens, from the first on; none where they
        reach no further than `beyond` tokens.
        """
        with self._lock:
            path = self._path(tokens)
            self._lookups += 1
            if len(path) * BLOCK <= beyond:
                return []
            self._hits += 1
            self._tokens += len(path) * BLOCK - beyond
            return [node.block for node in path]

    def add(self, tokens: Sequence[int], read: Callable[[int, int], np.ndarray]) -> None:
        """Keep the whole blocks of a text. read: a copy of slots [start, stop), [2N, Hkv, n, Dh]."""
        if not self._limit:
            return
        with self._lock:
            path = self._path(tokens)
            for start in range(len(path) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
                block = read(start, start + BLOCK)
                if not self._make_room(block.nbytes, path):
                    return
                parent = path[-1] if path else self._root
                key = tuple(tokens[start : start + BLOCK])
                node = _Node(parent, key, block)
                parent.children[key] = node
                self._bytes += block.nbytes
                path.append(node)
                self._touch(path)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._root.children.clear()
            self._used.clear()
            self._bytes = 0

    def _path(self, tokens: Sequence[int]) -> list[_Node]:
        node, path = self._root, []
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            node = node.children.get(tuple(tokens[start : start + BLOCK]))
            if node is None:
                break
            path.append(node)
        self._touch(path)
        return path

    def _touch(self, path: Sequence[_Node]) -> None:
        for node in reversed(path):
            self._used[node] = None
            self._used.move_to_end(node)

    def _make_room(self, needed: int, kept: Sequence[_Node]) -> bool:
        """Evict leaves until so many bytes fit; False: they never will."""
        kept = set(kept)
        while self._bytes + needed > self._limit:
            oldest = next(iter(self._used), None)  # a leaf: whoever used a child used its parent after it
            if oldest is None or oldest in kept:
                return False
            del self._used[oldest]
            del oldest.parent.children[oldest.key]
            self._bytes -= oldest.block.nbytes
            self._evictions += 1
        return True
