"""The target of a backend, and the packages that targets need.

In: a bundle, a backend's name. Out: a `Target`, or a FirpError that says what to install.
"""

import contextlib
import importlib
import importlib.util

from firp.calib.targets.interface import Target
from firp.runtime.bundle.format import Bundle
from firp.runtime.errors import FirpError


def require_packages(purpose: str, packages: tuple[str, ...]) -> None:
    """Raises FirpError with the line that installs what is missing."""
    if absent := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise FirpError(
            f"{purpose} needs {' and '.join(absent)}", got="not installed", fix="pip install 'firp[profile]'"
        )


def open_target(bundle: Bundle, backend: str) -> Target:
    """Polygraphy is imported after the target is made and not before: its TensorRT is chosen when
    that happens. And after torch, if it is there: polygraphy looks for it in the middle of a run,
    and would swallow an interrupt that falls into that.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("torch")
    if backend in ("tensorrt", "tensorrt-rtx"):
        from firp.calib.targets.tensor_rt import TensorRTTarget

        target = TensorRTTarget(bundle, backend)
    else:
        from firp.calib.targets.onnx_runtime import OnnxTarget

        target = OnnxTarget(bundle, backend)
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.ERROR  # what it says of each runner would stand between our results
    return target
