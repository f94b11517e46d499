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

    reuses_bindings = False  # every pass sees another number of cached slots
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

    def clear(self, array: np.ndarray) -> None:
        array[...] = 0

    def write(self, array: np.ndarray, values: np.ndarray) -> None:
        array[...] = values

    def write_bias(
        self, array: np.ndarray, visible: np.ndarray, positions: np.ndarray, cached: int, window: int | None
    ) -> None:
        attention_bias(visible, positions, cached, window, array[0, 0])

    def move_rows(self, source: np.ndarray, rows: Sequence[int], target: np.ndarray, start: int) -> None:
        target[:, start : start + len(rows)] = source[:, rows]

    def read(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        return arrays

    def slots_in_view(self, cached: int, capacity: int) -> int:
        return cached

    def now(self) -> float:
        return time.perf_counter()

    def elapsed_ms(self, start: float, end: float) -> float:
        return (end - start) * 1e3


def attention_bias(
    visible: np.ndarray, positions: np.ndarray, cached: int, window: int | None, out: np.ndarray
) -> None:
    """Write the additive mask of one pass into out [R, S+R]: 0 where a row sees a key, the dtype's
    lowest value where not.

    visible: [R, R] from `layout`; positions: [R] absolute. The first `cached` of the S slots hold
    the positions of their number, the others nothing. A sliding window hides keys whose position is
    `window` or more behind the row's.
    """
    hidden = lowest(out.dtype)
    slots = out.shape[1] - out.shape[0]
    out[:, :cached] = 0
    out[:, cached:slots] = hidden
    if window is not None:
        visible = visible & (positions[:, None] - positions[None, :] < window)
        for row, position in enumerate(positions.tolist()):
            out[row, : max(0, min(cached, position - window + 1))] = hidden
    np.copyto(out[:, slots:], np.where(visible, out.dtype.type(0), hidden))
