"""Memory on the host, and the mask of a pass in memory of any kind.

In: shapes and types. Out: arrays that graphs read and write.
"""

import time
from collections.abc import Sequence

import numpy as np

from firp.runtime.bundle.dtypes import lowest
from firp.runtime.errors import FirpError


class HostMemory:
    """numpy arrays: reading and writing is immediate, and nothing is copied that the loop can look
    at in place.
    """

    free_reads = True

    def __init__(self):
        self.counters: dict[str, int] = {}

    def zeros(self, shape: tuple[int, ...], dtype: type, purpose: str) -> np.ndarray:
        try:
            return np.zeros(shape, dtype)  # taken from the system only as it is touched
        except (MemoryError, ValueError) as error:  # the latter beyond what an address can hold
            raise FirpError(
                f"not enough memory for {purpose}",
                got=f"{list(shape)} {np.dtype(dtype)}",
                fix="fewer new tokens, or a shorter prompt",
            ) from error

    def taken(self) -> frozenset[int]:
        return frozenset()

    def free(self, taken: frozenset[int]) -> None:
        return

    def clear(self, array: np.ndarray) -> None:
        array[...] = 0

    def touch(self, array: np.ndarray) -> None:
        array[...] = 0

    def copy(self, source: np.ndarray, target: np.ndarray) -> None:
        target[...] = source

    def write(self, array: np.ndarray, values: np.ndarray) -> None:
        array[...] = values

    def write_bias(
        self,
        array: np.ndarray,
        visible: np.ndarray,
        positions: np.ndarray,
        cached: int,
        first: int,
        window: int | None,
    ) -> None:
        attention_bias(visible, positions, cached, first, window, array)

    def move_rows(self, source: np.ndarray, rows: Sequence[int], target: np.ndarray, start: int) -> None:
        target[:, start : start + len(rows)] = source[:, rows]

    def move_slots(self, array: np.ndarray, slots: Sequence[int], start: int) -> None:
        array[:, start : start + len(slots)] = array[:, slots]

    def clear_slots(self, array: np.ndarray, start: int, stop: int) -> None:
        array[:, start:stop] = 0

    def lay_out(self, array: np.ndarray, blocks: int, before: int, after: int, used: int, width: int) -> None:
        order = range(blocks) if after < before else reversed(range(blocks))  # none is overwritten
        for block in order:
            start = block * after * width
            source = block * before * width
            array[start : start + used * width] = array[source : source + used * width]
            array[start + used * width : start + after * width] = 0

    def read(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        return arrays

    def slots_in_view(self, first: int, cached: int, capacity: int) -> range:
        return range(first, cached)

    def now(self) -> float:
        return time.perf_counter()

    def elapsed_ms(self, start: float, end: float) -> float:
        return (end - start) * 1e3


def attention_bias(
    visible: np.ndarray, positions: np.ndarray, cached: int, first: int, window: int | None, out: np.ndarray
) -> None:
    """Write the additive mask of one pass into out [R, columns]: 0 where a row sees a key, the
    dtype's lowest value where not.

    visible: [R, R] from `layout`; positions: [R] absolute. The first `cached` columns hold the
    positions of their number, R from `first` on the rows of the pass, the others nothing. A sliding
    window hides keys whose position is `window` or more behind the row's.
    """
    hidden = lowest(out.dtype)
    end = first + len(positions)
    out[:, :cached] = 0
    out[:, cached:first] = hidden
    out[:, end:] = hidden
    if window is not None:
        visible = visible & (positions[:, None] - positions[None, :] < window)
        for row, position in enumerate(positions.tolist()):
            out[row, : max(0, min(cached, position - window + 1))] = hidden
    np.copyto(out[:, first:end], np.where(visible, out.dtype.type(0), hidden))
