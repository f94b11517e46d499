"""Extras: which packages an installation of firp has, and the line that installs what is missing.

In: the name of a module, or the error of its import. Out: a FirpError that ends with a pip command.
"""

from collections.abc import Iterable
from importlib.util import find_spec

from firp.runtime.errors import FirpError

# module -> the extras of pyproject.toml that bring it, the usual one first; others are in the base
EXTRAS = {
    "onnxruntime": ("cpu", "gpu"),
    "cuda": ("gpu", "tensorrt", "tensorrt-rtx"),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt-rtx",),
    "torch": ("export",),
    "transformers": ("export",),
    "gguf": ("export",),
    "llguidance": ("structured", "serve"),
    "onnx_ir": ("export", "profile", "tensorrt", "tensorrt-rtx"),
    "ml_dtypes": ("export", "profile", "tensorrt", "tensorrt-rtx"),
    "onnx": ("profile", "export"),
    "matplotlib": ("profile", "export"),
    "polygraphy": ("profile",),
    "fastapi": ("serve",),
    "pydantic": ("serve",),
    "uvicorn": ("serve",),
    "prometheus_client": ("serve",),
    "ray": ("ray",),
}


def install_line(extra: str) -> str:
    """The command that adds an extra to this environment. The base alone has no ONNX Runtime: who
    needs it learns of both wheels.
    """
    other = ", or 'firp[gpu]' for an NVIDIA GPU" if extra == "cpu" else ""
    return f"pip install 'firp[{extra}]'{other}"


def require(purpose: str, modules: Iterable[str]) -> None:
    """Look for modules without importing them. Raises FirpError with the line that installs what is
    missing.
    """
    if absent := [name for name in modules if find_spec(name) is None]:
        extras = dict.fromkeys(EXTRAS[name][0] for name in absent)
        fix = ", then ".join(install_line(extra) for extra in extras)
        raise FirpError(f"{purpose} needs {' and '.join(absent)}", got="not installed", fix=fix)


def missing_package(who: str, error: ModuleNotFoundError, extra: str | None = None) -> FirpError:
    """An error that a user reads instead of a failed import.

    who: the subject of "needs"; extra: the one that serves here, where several bring the module.
    """
    name = (error.name or "").partition(".")[0]
    if name in EXTRAS:
        return FirpError(f"{who} needs {name}", fix=install_line(extra or EXTRAS[name][0]))
    return FirpError(f"{who} needs {name}", fix=f"pip install {name}")
