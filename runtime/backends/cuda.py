"""Memory of a CUDA device, and the stream on which everything of one session happens, in order.

In: the CUDA runtime (`cuda.bindings.runtime`). Out: arrays for graphs to read and write, copies,
CUDA graphs. Only `read` waits, and what takes or frees memory. Uploads go through pinned memory
that is used again after each wait.
"""

import math
import weakref
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from firp.runtime.backends.cuda_runtime import call, new_stream
from firp.runtime.backends.host import attention_bias
from firp.runtime.backends.pinned_memory import PinnedMemory, host_view
from firp.runtime.backends.slot_buckets import bucketed_slots
from firp.runtime.errors import FirpError

_EVENTS = 128  # more than lie between two reads
GRAPH_RUNS = ("captures", "replays", "enqueued", "fallbacks")  # the last: enqueued since a capture failed


class DeviceArray:
    """A C-contiguous array on the device: an address, a shape, the type of what lies there."""

    __slots__ = ("address", "dtype", "shape")

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype):
        self.address = address
        self.shape = shape
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, rows: int | slice) -> "DeviceArray":
        start, stop, _ = (
            slice(rows, rows + 1).indices(self.shape[0])
            if isinstance(rows, int)
            else rows.indices(self.shape[0])
        )
        inner = self.shape[1:]
        address = self.address + start * math.prod(inner) * self.dtype.itemsize
        return DeviceArray(
            address, inner if isinstance(rows, int) else (max(0, stop - start), *inner), self.dtype
        )

    def reshape(self, *shape: int) -> "DeviceArray":
        """The same memory in another shape. Raises ValueError when the sizes differ."""
        if -1 in shape:
            known = math.prod(size for size in shape if size != -1)
            shape = tuple(math.prod(self.shape) // known if size == -1 else size for size in shape)
        if math.prod(shape) != math.prod(self.shape):
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return DeviceArray(self.address, shape, self.dtype)


class CudaMemory:
    """Arrays and the stream of one session."""

    free_reads = False

    def __init__(self, cuda: ModuleType, stream: Any = None):
        self.cuda = cuda
        self._owned: list[tuple[Callable, Any]] = []
        self.stream = self._own(cuda.cudaStreamDestroy, new_stream(cuda)) if stream is None else stream
        weakref.finalize(self, _release, cuda, self.stream, self._owned)
        self._arrays: dict[int, tuple[str, int]] = {}  # address -> purpose and bytes
        self._upload, self._download = PinnedMemory(cuda, self._owned), PinnedMemory(cuda, self._owned)
        self._events = [
            self._own(cuda.cudaEventDestroy, self._call(cuda.cudaEventCreate)) for _ in range(_EVENTS)
        ]
        self._next_event = 0
        self._workspace_bytes = 0
        self._workspace: DeviceArray | None = None
        self._spare: DeviceArray | None = None  # to move blocks through
        self.counters = dict.fromkeys(GRAPH_RUNS, 0)

    def zeros(self, shape: tuple[int, ...], dtype: type, purpose: str) -> DeviceArray:
        array = DeviceArray(0, shape, np.dtype(dtype))
        cuda = self.cuda
        size = max(array.nbytes, 1)
        status, address = cuda.cudaMalloc(size)
        if status == cuda.cudaError_t.cudaErrorMemoryAllocation:
            free = self._call(cuda.cudaMemGetInfo)
            ledger = {purpose: size}
            for name, taken in self._arrays.values():
                ledger[name] = ledger.get(name, 0) + taken
            held = " + ".join(f"{name} {taken / 2**20:.0f}" for name, taken in sorted(ledger.items()))
            raise FirpError(
                "out of device memory",
                got=f"{free / 2**20:.0f} MiB free",
                expected=f"MiB: {held}",
                fix="build engines with a smaller --max-context or --max-rows, or free the device",
            )
        if status != cuda.cudaError_t.cudaSuccess:
            raise FirpError("CUDA refused memory", got=f"{status.name} for {size} bytes of {purpose}")
        array.address = self._own(cuda.cudaFree, int(address))
        self._arrays[array.address] = purpose, size
        self.clear(array)
        return array

    def taken(self) -> frozenset[int]:
        return frozenset(self._arrays)

    def free(self, taken: frozenset[int]) -> None:
        self.wait()
        if self._spare is not None and self._spare.address in taken:
            self._spare = None
        for address in taken:
            del self._arrays[address]
            self._owned.remove((self.cuda.cudaFree, address))
            self._call(self.cuda.cudaFree, address)

    def clear(self, array: DeviceArray) -> None:
        self._call(self.cuda.cudaMemsetAsync, array.address, 0, array.nbytes, self.stream)

    def touch(self, array: DeviceArray) -> None:
        return  # it was given when it was asked for

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call(
            self.cuda.cudaMemcpyAsync, target.address, source.address, source.nbytes, kind, self.stream
        )

    def write(self, array: DeviceArray, values: np.ndarray) -> None:
        if values.shape != array.shape:
            raise ValueError(f"cannot write {values.shape} to {array.shape}")
        staged = self._stage(np.ascontiguousarray(values, array.dtype))
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self.cuda.cudaMemcpyAsync, array.address, staged, array.nbytes, kind, self.stream)

    def write_bias(
        self,
        array: DeviceArray,
        visible: np.ndarray,
        positions: np.ndarray,
        cached: int,
        first: int,
        window: int | None,
    ) -> None:
        """Write the additive mask of a pass. Cached slots that every row sees are cleared on the
        device; only the columns after them cross the bus.
        """
        rows, keys = array.shape
        if window is not None and positions.max() < window:
            window = None
        clear = cached if window is None else 0
        size = array.dtype.itemsize
        host = np.empty((rows, keys - clear), array.dtype)
        attention_bias(visible, positions, cached - clear, first - clear, window, host)
        cuda = self.cuda
        pitch = keys * size
        width = (keys - clear) * size
        if clear:
            self._call(cuda.cudaMemset2DAsync, array.address, pitch, 0, clear * size, rows, self.stream)
        target = array.address + clear * size
        kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(
            cuda.cudaMemcpy2DAsync, target, pitch, self._stage(host), width, width, rows, kind, self.stream
        )

    def move_rows(self, source: DeviceArray, rows: Sequence[int], target: DeviceArray, start: int) -> None:
        """Copy rows to others: one strided copy for each run of neighbouring rows."""
        cuda = self.cuda
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        row = math.prod(source.shape[2:]) * source.dtype.itemsize
        from_pitch, to_pitch = source.shape[1] * row, target.shape[1] * row
        for first, count in _runs(rows):
            to, origin = target.address + start * row, source.address + first * row
            self._call(
                cuda.cudaMemcpy2DAsync,
                to,
                to_pitch,
                origin,
                from_pitch,
                count * row,
                source.shape[0],
                kind,
                self.stream,
            )
            start += count

    def move_slots(self, array: DeviceArray, slots: Sequence[int], start: int) -> None:
        """Move one slot after the other, for a run of them may overlap its target."""
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        width = math.prod(array.shape[2:]) * array.dtype.itemsize
        pitch = array.shape[1] * width
        for target, slot in enumerate(slots, start):
            to, origin = array.address + target * width, array.address + slot * width
            copy = self.cuda.cudaMemcpy2DAsync
            self._call(copy, to, pitch, origin, pitch, width, array.shape[0], kind, self.stream)

    def clear_slots(self, array: DeviceArray, start: int, stop: int) -> None:
        width = math.prod(array.shape[2:]) * array.dtype.itemsize
        first = array.address + start * width
        size = (stop - start) * width
        fill = self.cuda.cudaMemset2DAsync
        self._call(fill, first, array.shape[1] * width, 0, size, array.shape[0], self.stream)

    def lay_out(
        self, array: DeviceArray, blocks: int, before: int, after: int, used: int, width: int
    ) -> None:
        """Through a block elsewhere: a block may overlap its target."""
        cuda = self.cuda
        size = width * array.dtype.itemsize
        if self._spare is None or self._spare.nbytes < used * size:
            self._spare = self.zeros((array.nbytes // blocks,), np.uint8, "one block of keys or values")
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        order = range(blocks) if after < before else reversed(range(blocks))  # none is overwritten
        for block in order:
            source = array.address + block * before * size
            target = array.address + block * after * size
            for to, origin in ((self._spare.address, source), (target, self._spare.address)):
                self._call(cuda.cudaMemcpyAsync, to, origin, used * size, kind, self.stream)
            gap = (after - used) * size
            self._call(cuda.cudaMemsetAsync, target + used * size, 0, gap, self.stream)

    def read(self, *arrays: DeviceArray) -> tuple[np.ndarray, ...]:
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        places = self._download.places([array.nbytes for array in arrays])
        for array, place in zip(arrays, places, strict=True):
            self._call(self.cuda.cudaMemcpyAsync, place, array.address, array.nbytes, kind, self.stream)
        self.wait()
        return tuple(
            host_view(place, array.shape, array.dtype) for array, place in zip(arrays, places, strict=True)
        )

    def wait(self) -> None:
        self._call(self.cuda.cudaStreamSynchronize, self.stream)
        self._upload.used = self._download.used = 0

    def slots_in_view(self, first: int, cached: int, capacity: int) -> range:
        return bucketed_slots(first, cached, capacity)

    def now(self) -> Any:
        event = self._events[self._next_event]
        self._next_event = (self._next_event + 1) % _EVENTS
        self._call(self.cuda.cudaEventRecord, event, self.stream)
        return event

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return self._call(self.cuda.cudaEventElapsedTime, start, end)

    def reserve_workspace(self, nbytes: int) -> None:
        """Make room for an engine's activations; engines that run one after the other share it."""
        self._workspace_bytes = max(self._workspace_bytes, nbytes)

    @property
    def workspace(self) -> DeviceArray:
        """An array as large as the largest reservation; taken when it is first used, after every
        engine has asked.
        """
        if self._workspace is None:
            self._workspace = self.zeros((self._workspace_bytes,), np.uint8, "activations of the engines")
        return self._workspace

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """Capture what `enqueue` asks for as a CUDA graph to `launch`; it is not executed now.
        Raises FirpError when it cannot be captured; the stream is whole again then.
        """
        cuda = self.cuda
        self._call(
            cuda.cudaStreamBeginCapture,
            self.stream,
            cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
        )
        try:
            enqueue()
        except BaseException:
            _, graph = cuda.cudaStreamEndCapture(self.stream)  # its status would hide the reason
            if graph:
                cuda.cudaGraphDestroy(graph)
            raise
        graph = self._call(cuda.cudaStreamEndCapture, self.stream)
        executable = self._own(cuda.cudaGraphExecDestroy, self._call(cuda.cudaGraphInstantiate, graph, 0))
        self._call(cuda.cudaGraphDestroy, graph)
        return executable

    def launch(self, executable: Any) -> None:
        self._call(self.cuda.cudaGraphLaunch, executable, self.stream)

    def _stage(self, values: np.ndarray) -> int:
        """Address of a copy in pinned memory."""
        if not self._upload.fits(values.nbytes):
            self.wait()
        (place,) = self._upload.places([values.nbytes])
        host_view(place, values.shape, values.dtype)[...] = values
        return place

    def _own(self, release: Callable, handle: Any) -> Any:
        self._owned.append((release, handle))
        return handle

    def _call(self, function: Callable, *arguments: Any) -> Any:
        return call(self.cuda, function, *arguments)


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring rows in ascending order as (first, count)."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        if runs and row == sum(runs[-1]):
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((row, 1))
    return runs


def _release(cuda: ModuleType, stream: Any, owned: list[tuple[Callable, Any]]) -> None:
    """Give back what nothing uses any more, the last taken first. The process may be ending: nobody
    listens to complaints.
    """
    cuda.cudaStreamSynchronize(stream)
    while owned:
        release, handle = owned.pop()
        release(handle)
