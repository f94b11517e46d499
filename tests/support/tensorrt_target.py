"""A TensorRT target of calibration where there is no GPU.

In: a bundle, a library, the folder of its engines. Out: a `TensorRTTarget` that was made as always,
on a device that is not there.
"""

from types import SimpleNamespace
from typing import Any

from polygraphy import config, cuda

from firp.calib.targets import tensor_rt
from firp.runtime.bundle.format import Bundle


def target_without_gpu(monkeypatch, bundle: Bundle, library: Any, engines: Any) -> tensor_rt.TensorRTTarget:
    """For a GPU of compute capability 8.9; engines: an engine folder, or a double of one."""
    device = SimpleNamespace(library=library, device="no device", compute_capability="8.9")
    monkeypatch.setattr(tensor_rt, "TensorRTBackend", lambda backend: device)
    monkeypatch.setattr(tensor_rt, "find_engine_folder", lambda *_: engines)
    monkeypatch.setattr(cuda, "wrapper", lambda: None)
    monkeypatch.setattr(config, "USE_TENSORRT_RTX", True)
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "1")  # the target sets it: here it is undone
    return tensor_rt.TensorRTTarget(bundle, "tensorrt-rtx")
