"""The CUDA runtime: its Python bindings, calls that raise, the current device.

In: `cuda.bindings.runtime`, which extras of firp bring. Out: the module, and results of its calls;
FirpError with CUDA's own words where one fails.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from firp.runtime.errors import FirpError
from firp.runtime.extras import install_line


def load_cuda(extra: str = "gpu") -> ModuleType:
    """The CUDA runtime's Python bindings. extra: of firp, that brings them to whom asks. Raises
    FirpError where they or a usable device are missing.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise FirpError(
            "the CUDA bindings are not installed", got=str(error), fix=install_line(extra)
        ) from error
    status, count = runtime.cudaGetDeviceCount()
    if status != runtime.cudaError_t.cudaSuccess or not count:
        got = f"{status.name} from the driver" if status != runtime.cudaError_t.cudaSuccess else "no device"
        raise FirpError(
            "no usable CUDA device",
            got=got,
            expected="an NVIDIA GPU and its driver",
            fix="decode with --backend cpu",
        )
    return runtime


def new_stream(cuda: ModuleType) -> Any:
    """A stream that does not wait for CUDA's default one, where work of others would end a
    capture.
    """
    return call(cuda, cuda.cudaStreamCreateWithFlags, cuda.cudaStreamNonBlocking)


def device_name(cuda: ModuleType) -> str:
    """Name of the current device."""
    return call(cuda, cuda.cudaGetDeviceProperties, call(cuda, cuda.cudaGetDevice)).name.decode()


def compute_capability(cuda: ModuleType) -> str:
    """Compute capability of the current device, such as "8.9"."""
    device = call(cuda, cuda.cudaGetDevice)
    names = cuda.cudaDeviceAttr
    parts = (names.cudaDevAttrComputeCapabilityMajor, names.cudaDevAttrComputeCapabilityMinor)
    return ".".join(str(call(cuda, cuda.cudaDeviceGetAttribute, part, device)) for part in parts)


def call(cuda: ModuleType, function: Callable, *arguments: Any) -> Any:
    """The result of a CUDA call. Raises FirpError with CUDA's own words when it fails."""
    status, *values = function(*arguments)
    if status != cuda.cudaError_t.cudaSuccess:
        words = cuda.cudaGetErrorString(status)[1].decode()
        raise FirpError(f"CUDA refused {function.__name__}", got=f"{status.name} ({words})")
    return values[0] if values else None
