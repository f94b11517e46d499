"""Backends by name: what is imported when, and what is said where a library is missing."""

import subprocess
import sys

import pytest

from firp.runtime.backends.registry import BACKENDS, backend_factory
from firp.runtime.errors import FirpError


def test_names_are_known_without_any_library():
    script = "import sys; from firp.runtime.backends.registry import BACKENDS; print(*BACKENDS, *sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    names = found.stdout.split()
    assert names[:4] == ["cpu", "cuda", "tensorrt", "tensorrt-rtx"]
    assert not {"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda"} & set(names[4:])


def test_the_cpu_takes_threads():
    assert backend_factory("cpu", threads=3)().device.endswith(", 3 threads")


def test_an_unknown_name_is_refused_before_anything_is_made():
    with pytest.raises(FirpError, match="unknown backend . got 'abacus', expected cpu or cuda or tensorrt"):
        backend_factory("abacus")


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "cpu"])
def test_threads_are_refused_elsewhere(name):
    with pytest.raises(FirpError, match=f"threads are for the CPU . got 2 threads on {name}"):
        backend_factory(name, threads=2)


@pytest.mark.parametrize(
    ("backend", "module", "line"),
    [
        (
            "cpu",
            "onnxruntime",
            "backend cpu needs onnxruntime. Fix: pip install 'firp[cpu]', or 'firp[gpu]' for an NVIDIA GPU",
        ),
        ("cuda", "onnxruntime", "backend cuda needs onnxruntime. Fix: pip install 'firp[gpu]'"),
        ("tensorrt", "tensorrt", "Fix: pip install 'firp[tensorrt]'"),
        ("tensorrt-rtx", "tensorrt_rtx", "Fix: pip install 'firp[tensorrt-rtx]'"),
    ],
)
def test_a_missing_library_names_the_extra_that_brings_it(backend, module, line, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "firp.runtime.backends.onnx_runtime", raising=False)
    make = backend_factory(backend)
    with pytest.raises(FirpError) as caught:
        make()
    assert str(caught.value).endswith(line)


def test_cuda_with_the_wheel_of_the_cpu_names_the_extra_in_one_line(monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(FirpError) as caught:
        backend_factory("cuda")()
    assert str(caught.value) == (
        "this ONNX Runtime has no CUDA | got CPUExecutionProvider, expected CUDAExecutionProvider. "
        "Fix: make an environment with firp[gpu]; it cannot share one with firp[cpu]"
    )
