"""A double of the CUDA runtime's Python bindings, for tests: device addresses are host memory, and
a stream does its work late.

It proves our logic, not CUDA. What the real one refuses, it refuses: addresses that were never
allocated or are freed, copies beyond an allocation, uploads from memory that is not page-locked
(the real one would wait there). Work happens only when somebody waits, so that a buffer that is
used again too early shows; fresh device memory holds NaN.
"""

import bisect
import ctypes
import time
from enum import Enum, IntEnum
from types import SimpleNamespace

import numpy as np


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorIllegalAddress = 700
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(Enum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(Enum):
    cudaStreamCaptureModeThreadLocal = 1


class cudaDeviceAttr(Enum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


OK = cudaError_t.cudaSuccess


class Stream:
    def __init__(self):
        self.work, self.capturing, self.error = [], None, OK

    def __int__(self):
        return id(self)

    def add(self, work):
        (self.work if self.capturing is None else self.capturing).append(work)

    def drain(self):
        work, self.work = self.work, []
        for task in work:
            if self.error == OK:
                try:
                    task()
                except DeviceError as error:
                    self.error = error.status  # stays, as on a device
                    self.message = str(error)
        return self.error


class DeviceError(Exception):
    def __init__(self, status, what):
        super().__init__(what)
        self.status = status


class Allocations(dict):
    """Address -> its array. None overlaps another, so that bytes lie in the last one that begins at
    their address or before it, or in none.
    """

    def __init__(self):
        super().__init__()
        self.starts = []

    def __setitem__(self, address, array):
        super().__setitem__(address, array)
        bisect.insort(self.starts, address)

    def free(self, address):
        """Whether there was one at this address."""
        if self.pop(address, None) is None:
            return False
        self.starts.remove(address)
        return True

    def hold(self, address, size):
        """Whether so many bytes from the address on lie in one of them."""
        place = bisect.bisect_right(self.starts, address) - 1
        if place < 0:
            return size == 0
        start = self.starts[place]
        return size == 0 or address + size <= start + self[start].nbytes


class CudaDouble:
    """The module. memory_bytes: of the device."""

    cudaError_t, cudaMemcpyKind = cudaError_t, cudaMemcpyKind
    cudaStreamCaptureMode, cudaDeviceAttr = cudaStreamCaptureMode, cudaDeviceAttr

    def __init__(self, memory_bytes=2**33, compute_capability=(8, 9)):
        self.memory_bytes, self.compute_capability = memory_bytes, compute_capability
        self.device, self.pinned = Allocations(), Allocations()
        self.streams = {}  # handle -> stream
        self.waits = self.launches = self.copied_to_device = self.copied_to_host = self.moved_on_device = 0

    # What is there
    def cudaGetDevice(self):
        return OK, 0

    def cudaDeviceGetAttribute(self, attribute, device):
        return OK, self.compute_capability[attribute is cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor]

    def cudaGetDeviceProperties(self, device):
        return OK, SimpleNamespace(name=b"Double of a GPU")

    def cudaMemGetInfo(self):
        return OK, self.memory_bytes - sum(a.nbytes for a in self.device.values()), self.memory_bytes

    def cudaGetErrorString(self, status):
        return OK, status.name.encode()

    # Memory
    def cudaMalloc(self, size):
        if any(stream.capturing is not None for stream in self.streams.values()):
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        if size > self.cudaMemGetInfo()[1]:
            return cudaError_t.cudaErrorMemoryAllocation, None
        return OK, self._take(self.device, size)

    def cudaMallocHost(self, size):
        return OK, self._take(self.pinned, size)

    def _take(self, place, size):
        array = np.full(size, 0xFF, np.uint8)
        place[array.ctypes.data] = array
        return array.ctypes.data

    def cudaFree(self, address):
        return (OK if self.device.free(address) else cudaError_t.cudaErrorInvalidValue,)

    def cudaFreeHost(self, address):
        return (OK if self.pinned.free(address) else cudaError_t.cudaErrorInvalidValue,)

    def need(self, place, address, size):
        if not place.hold(address, size):
            raise DeviceError(cudaError_t.cudaErrorIllegalAddress, f"{size} bytes at {address}")

    # Copies
    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        return self.cudaMemcpy2DAsync(target, size, source, size, size, 1, kind, stream)

    def cudaMemcpy2DAsync(self, target, target_pitch, source, source_pitch, width, height, kind, stream):
        if width > min(target_pitch, source_pitch):
            return (cudaError_t.cudaErrorInvalidValue,)
        to, origin = {
            cudaMemcpyKind.cudaMemcpyHostToDevice: (self.device, self.pinned),
            cudaMemcpyKind.cudaMemcpyDeviceToHost: (self.pinned, self.device),
            cudaMemcpyKind.cudaMemcpyDeviceToDevice: (self.device, self.device),
        }[kind]

        def copy():
            for row in range(height):
                self.need(to, target + row * target_pitch, width)
                self.need(origin, source + row * source_pitch, width)
                ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)
            if to is origin:
                self.moved_on_device += width * height
            elif to is self.device:
                self.copied_to_device += width * height
            else:
                self.copied_to_host += width * height

        stream.add(copy)
        return (OK,)

    def cudaMemsetAsync(self, target, value, size, stream):
        return self.cudaMemset2DAsync(target, size, value, size, 1, stream)

    def cudaMemset2DAsync(self, target, pitch, value, width, height, stream):
        def fill():
            for row in range(height):
                self.need(self.device, target + row * pitch, width)
                ctypes.memset(target + row * pitch, value, width)

        stream.add(fill)
        return (OK,)

    # Streams, events, graphs
    cudaStreamNonBlocking = 1

    def cudaStreamCreateWithFlags(self, flags):
        if flags != self.cudaStreamNonBlocking:
            return cudaError_t.cudaErrorInvalidValue, None
        stream = Stream()
        self.streams[int(stream)] = stream
        return OK, stream

    def cudaStreamDestroy(self, stream):
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        if stream.capturing is not None:
            return (cudaError_t.cudaErrorStreamCaptureInvalidated,)
        self.waits += 1
        return (stream.drain(),)

    def cudaEventCreate(self):
        return OK, SimpleNamespace(at=None)

    def cudaEventDestroy(self, event):
        return (OK,)

    def cudaEventRecord(self, event, stream):
        event.at = None
        stream.add(lambda: setattr(event, "at", time.perf_counter()))
        return (OK,)

    def cudaEventElapsedTime(self, start, end):
        if start.at is None or end.at is None:
            return cudaError_t.cudaErrorInvalidValue, None
        return OK, (end.at - start.at) * 1e3

    def cudaStreamBeginCapture(self, stream, mode):
        stream.capturing = []
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        captured, stream.capturing = stream.capturing, None
        return OK, captured

    def cudaGraphInstantiate(self, graph, flags):
        return OK, SimpleNamespace(work=list(graph), alive=True)

    def cudaGraphDestroy(self, graph):
        graph.clear()
        return (OK,)

    def cudaGraphExecDestroy(self, executable):
        executable.alive = False
        return (OK,)

    def cudaGraphLaunch(self, executable, stream):
        if not executable.alive:
            return (cudaError_t.cudaErrorInvalidValue,)
        self.launches += 1
        for work in executable.work:
            stream.add(work)
        return (OK,)
