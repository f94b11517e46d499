"""How fast memory is read here, for figures that say what share of it decoding reaches.

In: how many threads read. Out: bytes a second.
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

READ_BYTES = 2**30  # far larger than caches
TURNS = 7


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
