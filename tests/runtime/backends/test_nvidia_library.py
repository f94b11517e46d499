"""The GPU that is here. The libraries' versions are tested with the build that refuses them."""

import sys

import pytest
from support.cuda_double import CudaDouble, cudaError_t

from firp.runtime.backends import nvidia_library as tensorrt_library
from firp.runtime.backends.cuda_runtime import load_cuda
from firp.runtime.backends.nvidia_library import gpu_compute_capability
from firp.runtime.errors import FirpError


def test_compute_capability(monkeypatch):
    cuda = CudaDouble(compute_capability=(12, 1))
    monkeypatch.setattr(tensorrt_library, "load_cuda", lambda: cuda)
    assert gpu_compute_capability() == "12.1"
    cuda.cudaGetDevice = failing(cudaError_t.cudaErrorInvalidValue)
    assert gpu_compute_capability() is None


def failing(status):
    def cudaGetDevice():
        return status, None

    return cudaGetDevice


def test_without_the_bindings_there_is_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert gpu_compute_capability() is None
    with pytest.raises(FirpError, match=r"the CUDA bindings are not installed.*pip install 'firp\[gpu\]'"):
        load_cuda()
