"""The target of a backend.

In: a bundle, a backend's name. Out: a `Target`, or a FirpError that says what this machine lacks.
"""

import contextlib
import importlib

from firp.calib.targets.interface import Target
from firp.runtime.bundle.format import Bundle


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
