"""The backends by name; the library of one is imported when the backend is made, and not before.

In: a name, as the command line takes it. Out: a factory, so that the rest of a request can be
checked before a library is loaded.
"""

import functools
from collections.abc import Callable

from firp.runtime.backends.interface import Backend
from firp.runtime.errors import FirpError
from firp.runtime.extras import missing_package


def _onnx_runtime(threads: int | None = None) -> Backend:
    try:
        from firp.runtime.backends.onnx_runtime import OnnxRuntimeBackend
    except ModuleNotFoundError as error:
        raise missing_package("backend cpu", error) from error
    return OnnxRuntimeBackend(threads)


def _onnx_runtime_cuda() -> Backend:
    try:
        from firp.runtime.backends.onnx_runtime import OnnxRuntimeCudaBackend
    except ModuleNotFoundError as error:
        raise missing_package("backend cuda", error, extra="gpu") from error
    return OnnxRuntimeCudaBackend()


def _tensor_rt(name: str) -> Backend:
    from firp.runtime.backends.tensor_rt import TensorRTBackend

    return TensorRTBackend(name)


BACKENDS: dict[str, Callable[..., Backend]] = {
    "cpu": _onnx_runtime,
    "cuda": _onnx_runtime_cuda,
    "tensorrt": functools.partial(_tensor_rt, "tensorrt"),
    "tensorrt-rtx": functools.partial(_tensor_rt, "tensorrt-rtx"),
}


def backend_factory(name: str, threads: int | None = None) -> Callable[[], Backend]:
    """A function that makes a backend, and raises FirpError where its library or device is missing.

    threads: of each graph on the CPU, None for one a core. Raises FirpError for an unknown name, or
    for threads of a backend that has none.
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise FirpError("unknown backend", got=repr(name), expected=" or ".join(BACKENDS))
    if threads is None:
        return BACKENDS[name]
    if name != "cpu":
        raise FirpError("threads are for the CPU", got=f"{threads} threads on {name}", fix="leave them out")
    return functools.partial(BACKENDS[name], threads)
