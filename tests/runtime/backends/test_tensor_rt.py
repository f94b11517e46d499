"""The decode loop on device-resident buffers, on a double of the device: it proves our logic, not
TensorRT.
"""

import ctypes
import itertools
import math
import shutil

import numpy as np
import pytest
from support.cuda_double import cudaError_t
from support.tensorrt_double import device_engine

from firp.export.verify.checks import verify
from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.limits import Limits
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.passes.request import Needs
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig
from firp.runtime.tuning.parity import compare_trees
from firp.runtime.tuning.tune import tune

TREES = {
    "chain": TreeConfig.chain(3, 2),
    "static": TreeConfig.static([(0,), (1,), (0, 0), (0, 1), (0, 0, 0)], 1),
    "dynamic": TreeConfig("dynamic", rows=12, draft_sources=None),
    # the gaps of the third offset are closed
    "shallow": TreeConfig("dynamic", rows=8, draft_sources=3, depth=2),
    "draft pass": TreeConfig("dynamic", rows=8, draft_sources=0),
    "shallow draft pass": TreeConfig("dynamic", rows=5, draft_sources=0, depth=2),
}
PARAMS = [
    SamplingParams(90, ignore_eos=True),
    SamplingParams(60, temperature=0.8, top_p=0.95, seed=1, ignore_eos=True),
]


@pytest.fixture
def bundle(family_bundle, tmp_path):
    return shutil.copytree(family_bundle("llama")[1], tmp_path / "bundle")


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral_window"])
def test_the_device_decodes_what_the_cpu_decodes(family, family_bundle, tmp_path):
    path = shutil.copytree(family_bundle(family)[1], tmp_path / "bundle")
    host, device = Engine.load(path), device_engine(path)
    rng = np.random.default_rng(3)
    prompts = [rng.integers(2, 190, length).tolist() for length in (1, 17, 70)]
    for prompt, params in itertools.product(prompts, PARAMS):
        plain = host.generate(prompt, params, plain=True).token_ids
        assert device.generate(prompt, params, plain=True).token_ids == plain
        for name, tree in TREES.items():
            assert device.generate(prompt, params, tree=tree).token_ids == plain, name
    drafted = compare_trees(device, prompts, PARAMS, TREES)  # with a pick of its own, which asks for logits
    assert all(comparison.differences == [] for comparison in drafted)


def test_a_prompt_of_many_passes(bundle):
    prompt = np.random.default_rng(4).integers(2, 190, 200).tolist()
    engine = device_engine(bundle)
    assert (
        engine.generate(prompt, PARAMS[1]).token_ids
        == Engine.load(bundle).generate(prompt, PARAMS[1]).token_ids
    )


def test_penalties_and_logprobs_are_those_of_the_cpu(bundle):
    """The prompt's rows come home in pieces, as many as the engines decode at once."""
    prompt = np.random.default_rng(6).integers(2, 190, 70).tolist()
    params = SamplingParams(
        40, frequency_penalty=0.3, repetition_penalty=1.2, ignore_eos=True, logprobs=2, prompt_logprobs=1
    )
    device, host = device_engine(bundle, Limits(max_context=300, max_rows=20)), Engine.load(bundle)
    right, found = (
        host.generate(prompt, params, plain=True),
        device.generate(prompt, params, tree=TREES["shallow"]),
    )
    assert found.token_ids == right.token_ids
    for ours, theirs in ((found.logprobs, right.logprobs), (found.prompt_logprobs, right.prompt_logprobs)):
        assert [each and each.token_id for each in ours] == [each and each.token_id for each in theirs]
        known = [(mine.logprob, other.logprob) for mine, other in zip(ours, theirs, strict=True) if mine]
        np.testing.assert_allclose(*zip(*known, strict=True), atol=1e-4)


def test_one_wait_a_step_and_few_bytes_come_back(bundle):
    engine, tree = device_engine(bundle), TreeConfig("dynamic", rows=8, draft_sources=2)
    list(engine.steps(engine.request([5, 6, 7], SamplingParams(40, ignore_eos=True)), tree))
    cuda = engine.backend.cuda
    waits, home = cuda.waits, cuda.copied_to_host
    steps = list(engine.steps(engine.request([5, 6, 7], SamplingParams(40, ignore_eos=True)), tree))
    assert cuda.waits - waits == len(steps)
    rows_read = sum(step.rows or 1 for step in steps) + sum(2 * 3 if step.rows else 3 for step in steps)
    # top lists: ids and log-probabilities, no logits
    assert cuda.copied_to_host - home <= rows_read * 64 * 12
    sampled, home = PARAMS[1], cuda.copied_to_host
    sampled_steps = list(engine.steps(engine.request([5, 6, 7], sampled), tree))
    logits = sum(step.rows or 1 for step in sampled_steps) * engine.model.vocab_size * 4
    assert logits <= cuda.copied_to_host - home <= logits + 64 * 12 * 17 * len(sampled_steps)


def test_commits_move_the_accepted_rows_and_nothing_else(bundle):
    engine = device_engine(bundle)
    cuda, tree, model = engine.backend.cuda, TreeConfig("dynamic", rows=8, draft_sources=None), engine.model
    before = cuda.moved_on_device
    steps = list(engine.steps(engine.request([5, 6, 7], SamplingParams(40, ignore_eos=True)), tree))
    # the last step's commit waits for a step that never comes
    kept = 3 + sum(step.accept_length + 1 for step in steps[1:-1])
    row = 2 * model.num_hidden_layers * model.attention.key_value_size * 4
    hidden = model.hidden_size * 4  # of the last accepted row, for a draft pass
    assert cuda.moved_on_device - before == kept * row + (len(steps) - 1) * hidden


def test_passes_of_sizes_seen_twice_are_replayed(bundle):
    engine = device_engine(bundle)
    assert engine.sessions.graph_counts == {"captures": 0, "replays": 0, "enqueued": 0, "fallbacks": 0}
    params = SamplingParams(100, ignore_eos=True)
    first = engine.generate([5, 6, 7], params, tree=TREES["dynamic"]).token_ids
    counts = engine.sessions.graph_counts
    assert counts["captures"] > 0
    assert counts["replays"] > counts["enqueued"]
    assert counts["enqueued"] > 0
    assert counts["fallbacks"] == 0
    contexts = engine.backend.library.contexts
    assert engine.generate([5, 6, 7], params, tree=TREES["dynamic"]).token_ids == first
    again = engine.sessions.graph_counts
    new = {name: again[name] - counts[name] for name in again}
    assert new["replays"] > counts["replays"]
    assert new["enqueued"] + new["captures"] < counts["enqueued"] + counts["captures"]
    # the rest runs on what the first request left
    assert engine.backend.library.contexts - contexts == new["captures"]
    # one for each engine
    assert engine.sessions.kept_sessions == 1
    assert engine.backend.library.runtime_caches == 3


def test_what_cannot_be_captured_is_enqueued(bundle):
    engine, params = device_engine(bundle), SamplingParams(60, ignore_eos=True)
    expected = Engine.load(bundle).generate([5, 6, 7], params, plain=True).token_ids
    engine.backend.library.capturable = False
    assert engine.generate([5, 6, 7], params, tree=TREES["dynamic"]).token_ids == expected
    counts = engine.sessions.graph_counts
    assert counts["captures"] == 0
    assert counts["replays"] == 0
    assert counts["enqueued"] > 0
    assert counts["enqueued"] < counts["fallbacks"]
    failing = device_engine(bundle)
    failing.backend.cuda.cudaGraphInstantiate = lambda graph, flags: (cudaError_t.cudaErrorInvalidValue, None)
    failing.backend.cuda.cudaGraphInstantiate.__name__ = "cudaGraphInstantiate"
    assert failing.generate([5, 6, 7], params, tree=TREES["dynamic"]).token_ids == expected
    assert failing.sessions.graph_counts["captures"] == 0
    assert failing.sessions.graph_counts["fallbacks"] > 0


def test_prompts_use_up_no_cuda_graphs(bundle):
    engine = device_engine(bundle)
    for length in range(2, 30):
        for _ in range(3):
            engine.generate(list(range(2, 2 + length)), SamplingParams(1))
    assert engine.sessions.graph_counts["captures"] == 0
    assert engine.sessions.kept_bindings == 0


def test_a_request_leaves_nothing_in_a_kept_session(bundle):
    engine, params = device_engine(bundle), SamplingParams(40, ignore_eos=True)
    expected = engine.generate([5, 6, 7], params).token_ids
    with engine.sessions.lend(Needs(200, 16, 8)) as session:
        session.batch.kv.fill(NotFinite(), 200)  # as float16 that overflowed would
    assert engine.generate([5, 6, 7], params).token_ids == expected


class NotFinite:
    def standard_normal(self, shape, dtype):
        return np.full(shape, np.nan, dtype)


def test_two_requests_at_once_do_not_share_a_session(bundle):
    engine, params = device_engine(bundle), SamplingParams(30, ignore_eos=True)
    asked = [engine.request([token, 9], params) for token in (4, 8)]
    alone = [[token for step in engine.steps(request) for token in step.tokens] for request in asked]
    tokens = [[], []]
    for pair in itertools.zip_longest(*map(engine.steps, asked)):
        for place, step in enumerate(pair):
            tokens[place] += step.tokens if step else []
    assert tokens == alone
    assert engine.sessions.kept_sessions == 2


def test_all_memory_is_given_back(bundle):
    engine = device_engine(bundle)
    engine.generate([5, 6, 7], SamplingParams(20), tree=TREES["dynamic"])
    cuda = engine.backend.cuda
    assert cuda.device
    assert cuda.pinned
    engine.close()
    del engine
    assert not cuda.device
    assert not cuda.pinned


def test_verification_compares_an_engine_with_onnx_runtime_and_hugging_face(family_bundle, tmp_path):
    model, made = family_bundle("llama")
    bundle = shutil.copytree(made, tmp_path / "bundle")
    engine = device_engine(bundle, Limits(256, 1, 40))
    report = verify(bundle, model, engine=engine)
    assert report.passed
    assert not report.near_ties
    names = [check.name for check in report.checks]
    assert sum("ONNX Runtime" in name for name in names) == 6
    assert any("= generate" in name for name in names)
    assert not any("dynamic tree" in name for name in names)  # 64 rows: more than these engines hold
    for graph in ("lower", "upper"):  # an engine that says something else is found
        wrong = device_engine(shutil.copytree(bundle, tmp_path / graph))
        session = wrong.sessions.graphs[graph].native.session
        wrong.sessions.graphs[graph].native.session = Noisy(
            session, f"past_key.{0 if graph == 'lower' else 3}"
        )
        failed = [
            check.name for check in verify(tmp_path / graph, model, engine=wrong).checks if not check.passed
        ]
        assert any("ONNX Runtime" in name and name.startswith("decode") for name in failed)


class Noisy:
    """An ONNX Runtime session that sees one of its inputs a little wrong."""

    def __init__(self, session, name):
        self.session, self.name = session, name

    def io_binding(self):
        binding, name = self.session.io_binding(), self.name
        bind = binding.bind_input

        def bind_input(bound, device, index, kind, shape, address):
            if bound == name and shape[0]:
                values = np.frombuffer(
                    (ctypes.c_byte * (math.prod(shape) * 4)).from_address(address), kind
                ).copy()
                values[:] *= 1.5
                self.kept = values
                address = values.ctypes.data
            bind(bound, device, index, kind, shape, address)

        binding.bind_input = bind_input
        return binding

    def run_with_iobinding(self, binding):
        self.session.run_with_iobinding(binding)


def test_tuning_measures_the_device_and_chooses_what_it_holds(demo_bundle, tmp_path):
    bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")
    engine = device_engine(bundle, Limits(max_context=300, max_rows=20))
    choice = tune(engine)
    assert choice.latency.rows[-1] <= 20
    assert choice.latency.contexts == (128, 225)
    assert min(map(min, choice.latency.upper_ms)) > 0
    assert choice.tree.pass_rows(3) <= 20
    assert choice.latency.device == "Double of a GPU, tensorrt-rtx 1.7.1.116"
    assert load_bundle(bundle).manifest.choices[engine.backend.device] == choice


def test_out_of_memory_says_what_each_buffer_takes(bundle):
    engine = device_engine(bundle, memory_bytes=2**20)
    with pytest.raises(FirpError, match=r"out of device memory.*MiB free.*keys and values \d") as caught:
        engine.generate([5, 6, 7])
    assert "\n" not in str(caught.value)
    del caught  # whose traceback holds the session
    assert not engine.backend.cuda.device  # what was taken before is given back


@pytest.mark.parametrize(
    ("prompt", "tokens", "tree", "message"),
    [
        (
            list(range(2, 60)),
            90,
            None,
            "context larger than the engines hold.*got 148.*at most 100.*--max-context 148",
        ),
        (
            [5],
            20,
            TreeConfig("dynamic", rows=16, draft_sources=None),
            "rows larger than the engines hold.*64.*at most 32.*--max-rows 64",
        ),
    ],
)
def test_requests_beyond_the_limits_are_refused(bundle, prompt, tokens, tree, message):
    engine = device_engine(bundle, Limits(max_context=100, max_rows=32))
    with pytest.raises(FirpError, match=message):
        engine.generate(prompt, SamplingParams(tokens), tree=tree, plain=tree is None)
    assert engine.generate([5], SamplingParams(10), plain=True).token_ids  # and the engine goes on


def test_without_a_gpu_every_device_backend_says_so(bundle):
    for backend in ("tensorrt", "tensorrt-rtx", "cuda"):
        with pytest.raises(FirpError) as caught:
            Engine.load(bundle, backend)
        assert "\n" not in str(caught.value)
        assert "Fix:" in str(caught.value)
