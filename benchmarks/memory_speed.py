"""How fast memory is read here, and how much of it a token takes, for figures that say what share of
that speed decoding reaches.

In: how many threads read; a bundle. Out: bytes a second; bytes.
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from peer_turns import Lines

from firp.calib.targets.cost import Point, pass_cost
from firp.runtime.bundle.format import MANIFEST_NAME, read_manifest

READ_BYTES = 2**30  # far larger than caches
TURNS = 7
CONTEXT = 128  # of the row


def read_gb_per_s(threads: int) -> float:
    """1e9 bytes a second, by so many threads that each look for a maximum in a piece of their own; the
    median of several turns.
    """
    pieces = np.ones((threads, READ_BYTES // 4 // threads), np.float32)
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(TURNS):
            begin = time.perf_counter()
            list(pool.map(np.max, pieces))
            seconds.append(time.perf_counter() - begin)
    return pieces.nbytes / statistics.median(seconds) / 1e9


def keep_read_speed(lines: Lines, threads: int, turn: int) -> None:
    """A line of how fast memory is read now."""
    line = {"what": "bandwidth", "name": "read", "turn": turn}
    if not lines.has(**line):
        lines.add(**line, gb_per_s=read_gb_per_s(threads))


def bytes_of_a_token(bundle: Path) -> int:
    """Bytes of weights that one row reads, of experts those that it chooses."""
    manifest = read_manifest(bundle / MANIFEST_NAME)
    graphs = ("lower", "upper")
    return sum(pass_cost(manifest, graph, Point(1, CONTEXT, 1)).weight_bytes for graph in graphs)
