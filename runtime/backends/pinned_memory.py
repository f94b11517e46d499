"""Page-locked host memory, that a CUDA device copies from and to while the host goes on.

In: sizes of pieces. Out: their addresses, and numpy views of what lies there.
"""

import ctypes
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from firp.runtime.backends.cuda_runtime import call

_ALIGNMENT = 256  # bytes, of pieces of the pinned memory
_FIRST_STAGE = 2**20  # bytes of pinned memory to begin with


class PinnedMemory:
    """Page-locked host memory, handed out piece by piece; it grows when all of it is free."""

    def __init__(self, cuda: ModuleType, owned: list[tuple[Callable, Any]]):
        # not the memory itself: a cycle would keep the device's memory until it is found
        self._cuda = cuda
        self._owned = owned
        self._address = 0
        self._size = 0
        self.used = 0

    def fits(self, nbytes: int) -> bool:
        """Tell whether a piece of so many bytes is left."""
        return self.used + nbytes <= self._size

    def places(self, sizes: list[int]) -> list[int]:
        """Addresses of pieces. What was handed out before must be free when they do not fit any
        more.
        """
        padded = [-(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT for size in sizes]
        if self.used + sum(padded) > self._size:
            self._size = max(_FIRST_STAGE, 2 * sum(padded))
            self.used = 0
            self._address = int(call(self._cuda, self._cuda.cudaMallocHost, self._size))
            self._owned.append((self._cuda.cudaFreeHost, self._address))
        starts = [self._address + self.used + sum(padded[:i]) for i in range(len(padded))]
        self.used += sum(padded)
        return starts


def host_view(address: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A numpy view of host memory."""
    count = math.prod(shape)
    if not count:
        return np.empty(shape, dtype)
    return np.frombuffer((ctypes.c_byte * (count * dtype.itemsize)).from_address(address), dtype).reshape(
        shape
    )
