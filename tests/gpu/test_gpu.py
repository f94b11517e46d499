"""What a double cannot prove: engines run by the installed library on the GPU that is here, and
ONNX Runtime on CUDA.
"""

import json

import onnxruntime as ort
import pytest
from conftest import DEMO_MODEL
from support.command_line import firp

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.tensorrt.build import BuildOptions, build_engines, check_buildable
from firp.export.verify.checks import verify
from firp.runtime.backends.nvidia_library import LIBRARIES
from firp.runtime.bundle.limits import Limits
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.prompts import read_prompts
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig
from firp.runtime.tuning.parity import compare_trees, first_difference, plain_run

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=LIBRARIES)
def engine(request, tmp_path_factory) -> Engine:
    """The demo model in float16 on every library that builds for this GPU."""
    options = BuildOptions(request.param, Limits(max_context=1024, max_batch=4))
    try:
        check_buildable(options, "float16")
    except FirpError as error:
        pytest.skip(str(error))
    bundle = tmp_path_factory.mktemp("gpu") / "bundle"
    export_bundle(ExportOptions(DEMO_MODEL, bundle, DEMO_MODEL / "predictors", dtype="float16"))
    build_engines(bundle, options)
    return Engine.load(bundle, request.param)


def prompts(engine: Engine) -> list[list[int]]:
    return [engine.encode(prompt.text) for prompt in read_prompts(DEMO_MODEL / "demo_prompts.jsonl")[:3]]


def test_drafted_equals_plain(engine):
    trees = {
        "best tree": engine.best_tree,
        "draft pass": TreeConfig("dynamic", rows=6, draft_sources=0, depth=2),
    }
    params = [SamplingParams(48), SamplingParams(48, temperature=0.8, top_p=0.95, seed=1)]
    for comparison in compare_trees(engine, prompts(engine), params, trees):
        assert comparison.unexcused == []
        assert len(comparison.differences) <= comparison.allowed("float16")
        assert comparison.tokens_per_step > 1


def test_requests_that_decode_together_get_the_tokens_that_each_gets_alone(engine):
    params = SamplingParams(48)
    handles = [engine.submit(prompt, params, tree=engine.best_tree) for prompt in prompts(engine)]
    for index, (prompt, handle) in enumerate(zip(prompts(engine), handles, strict=True)):
        plain = plain_run(engine, prompt, params)
        found = first_difference(index, plain, handle.result(120).token_ids, params, "float16")
        assert found is None or found.near_tie


def test_cuda_graphs_are_replayed(engine):
    before = engine.sessions.graph_counts
    engine.generate(prompts(engine)[0], SamplingParams(64, ignore_eos=True), tree=engine.best_tree)
    counts = engine.sessions.graph_counts
    assert counts["captures"] > 0
    assert counts["replays"] > before["replays"]


def test_verification_passes(engine):
    report = verify(engine.bundle.path, DEMO_MODEL, engine=engine)
    assert [check for check in report.checks if not check.passed] == []


def test_layers_are_those_of_onnx_runtime(engine):
    """In a process of its own: polygraphy serves one TensorRT in each."""
    result = firp("verify", engine.bundle.path, "--layers", "--backend", engine.backend.name, "--json")
    assert result.returncode == 0, result.stderr
    assert [layers["tensors"] for layers in json.loads(result.stdout)["layers"]] == [13, 25, 1, 7, 11]


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(), reason="this ONNX Runtime has no CUDA"
)
def test_onnx_runtime_on_cuda_decodes_what_it_decodes_on_the_cpu(demo_bundle, demo_engine):
    cuda, params = Engine.load(demo_bundle, "cuda"), SamplingParams(48)
    for index, prompt in enumerate(prompts(demo_engine)):
        plain = plain_run(demo_engine, prompt, params)
        for tree in (None, demo_engine.best_tree):
            tokens = [token for step in cuda.steps(prompt, params, tree) for token in step.tokens]
            found = first_difference(index, plain, tokens, params, "float32")
            assert found is None or found.near_tie
