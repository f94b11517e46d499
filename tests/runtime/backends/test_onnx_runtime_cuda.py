"""ONNX Runtime on CUDA, on a double of both: it proves our logic, not theirs."""

import numpy as np
import pytest
from support.cuda_double import CudaDouble
from support.onnxruntime_double import OnnxRuntimeDouble

from firp.runtime.backends.onnx_runtime import OnnxRuntimeCudaBackend
from firp.runtime.bundle.format import load_bundle
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.passes.batch import Batch
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.passes.pass_shape import BatchSize
from firp.runtime.passes.session import Session
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import chain
from firp.runtime.trees.tree_config import TreeConfig


@pytest.mark.parametrize(
    "params", [SamplingParams(50), SamplingParams(50, temperature=0.8, top_p=0.9, seed=3)]
)
def test_cuda_decodes_what_the_cpu_decodes_and_gives_its_memory_back(params, family_bundle):
    path, cuda = family_bundle("qwen2")[1], CudaDouble()
    host = Engine.load(path)
    device = Engine(load_bundle(path), OnnxRuntimeCudaBackend(OnnxRuntimeDouble(cuda), cuda))
    assert device.backend.device == f"Double of a GPU, onnxruntime {OnnxRuntimeDouble.__version__}"
    for length in (1, 40):
        prompt = np.random.default_rng(length).integers(2, 190, length).tolist()
        plain = host.generate(prompt, params, plain=True).token_ids
        assert device.generate(prompt, params, plain=True).token_ids == plain
        for tree in (
            TreeConfig("dynamic", 8, None),
            TreeConfig("dynamic", 6, 0, depth=2),
            TreeConfig.chain(3, 1),
        ):
            assert device.generate(prompt, params, tree=tree).token_ids == plain
    assert device.sessions.graph_counts is None  # sessions are made to measure
    device.close()
    assert not cuda.device


def bytes_of(cuda):
    return sum(array.nbytes for array in cuda.device.values())


def test_a_batch_that_grows_keeps_its_texts_and_no_memory_of_before(family_bundle):
    bundle, cuda = load_bundle(family_bundle("qwen2")[1]), CudaDouble()
    backend = OnnxRuntimeCudaBackend(OnnxRuntimeDouble(cuda), cuda)
    graphs = backend.load(bundle, False).graphs
    before = bytes_of(cuda)
    small, large = BatchSize(40, 60, 60, 1), BatchSize(200, 60, 60, 3)
    batch = Batch(bundle.manifest, graphs, backend.memory(), large)
    expected, used = first_logits(batch), bytes_of(cuda) - before
    del batch
    batch = Batch(bundle.manifest, graphs, backend.memory(), small)
    taken = bytes_of(cuda)
    first_logits(batch)
    cuda.memory_bytes = taken + used // 2
    with pytest.raises(FirpError, match="out of device memory"):
        batch.resize(large)
    assert bytes_of(cuda) == taken
    cuda.memory_bytes = 2**33
    batch.resize(large)
    assert bytes_of(cuda) - before == used
    batch.kv.rewind(0, 30)
    np.testing.assert_array_equal(next_logits(Session(batch)), expected)


def first_logits(batch):
    """Those of a token after thirty."""
    session = Session(batch)
    session.forward(PassPlan(chain([*range(5, 35)]), decode=(29,), prompt=True))
    session.commit(range(30))
    return next_logits(session)


def next_logits(session):
    return session.forward(PassPlan(chain([7]))).logits.copy()


def test_no_silent_fallback_to_the_cpu(family_bundle):
    cuda = CudaDouble()
    backend = OnnxRuntimeCudaBackend(OnnxRuntimeDouble(cuda, ["CPUExecutionProvider"]), cuda)
    with pytest.raises(FirpError, match="fell back to the CPU"):
        Engine(load_bundle(family_bundle("llama")[1]), backend)
    partly = OnnxRuntimeDouble(cuda, on_cpu=("Shape", "Attention", "Attention", "TopK"))
    with pytest.raises(FirpError, match=r"parts of 'lower.onnx' on the CPU \| got 2 Attention, 1 TopK"):
        Engine(load_bundle(family_bundle("llama")[1]), OnnxRuntimeCudaBackend(partly, cuda))
    with pytest.raises(FirpError, match=r"this ONNX Runtime has no CUDA.*environment with firp\[gpu\]"):
        OnnxRuntimeCudaBackend()
