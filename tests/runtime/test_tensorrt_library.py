"""The GPU that is here, told by a driver of our own making. The libraries' versions are tested with the build that refuses them."""

import sys
from types import SimpleNamespace

import pytest

from firp.runtime.tensorrt_library import gpu_compute_capability

OK, NO_DEVICE = 0, 100


def driver(init=OK, attribute=OK):
    names = SimpleNamespace(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=12, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1)
    return SimpleNamespace(
        CUresult=SimpleNamespace(CUDA_SUCCESS=OK), CUdevice_attribute=names, cuInit=lambda _: (init,),
        cuDeviceGetAttribute=lambda name, device: (attribute, name if attribute == OK else None),
    )  # fmt: skip


def no_libcuda(_):
    raise RuntimeError("Failed to dlopen libcuda.so.1")


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (driver(), "12.1"),
        (driver(init=NO_DEVICE), None),
        (driver(attribute=NO_DEVICE), None),
        (SimpleNamespace(cuInit=no_libcuda), None),
        (None, None),
    ],
)
def test_compute_capability(module, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", module)
    assert gpu_compute_capability() == expected
