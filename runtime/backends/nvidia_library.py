"""NVIDIA's libraries: which Python module a backend needs, and what GPU is here.

In: the name of a TensorRT backend. Out: the module, or one line that says how to install it.
TensorRT and TensorRT-RTX have the same interface but for a few names; what only one of them has is
asked for with hasattr where it is used.
"""

import importlib
from types import ModuleType
from typing import NamedTuple

from firp.runtime.backends.cuda_runtime import compute_capability, load_cuda
from firp.runtime.errors import FirpError
from firp.runtime.extras import install_line


class Library(NamedTuple):
    """A TensorRT library: its module, and how firp knows it."""

    module: str
    oldest: tuple[int, int]  # what firp needs of the interface is in this version
    newest_major: int  # a later one may change the interface


LIBRARIES = {
    "tensorrt": Library("tensorrt", (10, 15), 11),
    "tensorrt-rtx": Library("tensorrt_rtx", (1, 7), 1),
}


def load_library(backend: str) -> ModuleType:
    """The library of a backend in `LIBRARIES`. Raises FirpError when it is missing, or of a version
    that firp does not know.
    """
    library = LIBRARIES[backend]
    install = install_line(backend)
    try:
        module = importlib.import_module(library.module)
    except ImportError as error:
        raise FirpError(
            f"{backend} is not installed", got=str(error), expected=f"module {library.module}", fix=install
        ) from error
    version = tuple(int(part) for part in module.__version__.split(".")[:2])
    if version < library.oldest or version[0] > library.newest_major:
        oldest = ".".join(map(str, library.oldest))
        raise FirpError(
            f"unsupported {backend} version",
            got=module.__version__,
            expected=f"{oldest} or later, major version {library.newest_major} at most",
            fix=install,
        )
    return module


def gpu_compute_capability() -> str | None:
    """Compute capability of the current CUDA device; None where there is no driver, no device, or
    no cuda-bindings.
    """
    try:
        return compute_capability(load_cuda())
    except FirpError:
        return None
