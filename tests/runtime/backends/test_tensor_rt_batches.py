"""Requests that share a pass on device-resident buffers, on a double of the device: buckets of
columns, and each request's tokens those that it gets alone.
"""

import random
import shutil

import numpy as np
import pytest
from support.tensorrt_double import device_engine

from firp.runtime.bundle.graph_spec import PREFIX
from firp.runtime.bundle.limits import Limits
from firp.runtime.engine import Engine
from firp.runtime.passes.batch import BatchSize
from firp.runtime.passes.kv_cache import cache_bytes, size_for
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.passes.session import Session, forward_together
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.lane_group import size_built_for
from firp.runtime.scheduling.service import EngineOptions
from firp.runtime.trees.tree import chain
from firp.runtime.trees.tree_config import TreeConfig

LIMITS = Limits(max_context=256, max_batch=4, max_rows=20)
TREES = (
    None,
    TreeConfig("dynamic", 6, 2),
    TreeConfig("dynamic", 4, 0),  # its drafts take a pass of their own
    # the longest tree beside the one with most pseudo rows: more than the engines hold
    TreeConfig("dynamic", 16, 0),
    TreeConfig("dynamic", 5, None),
)


@pytest.fixture(scope="module")
def bundle(family_bundle, tmp_path_factory):
    return shutil.copytree(family_bundle("llama")[1], tmp_path_factory.mktemp("batches") / "bundle")


@pytest.fixture(scope="module")
def host(bundle):
    return Engine.load(bundle)


@pytest.fixture
def load(bundle):
    made = []

    def load(limits=LIMITS, **options):
        shutil.rmtree(bundle / "engines", ignore_errors=True)
        made.append(device_engine(bundle, limits, options=EngineOptions(**options)))
        return made[-1]

    yield load
    for engine in made:
        engine.close()


def requests(count, seed):
    rng = random.Random(seed)
    for index in range(count):
        prompt = [rng.randrange(3, 190) for _ in range(rng.choice([1, 2, 5, 17, 60, 120]))]
        temperature = rng.choice([0.0, 0.9])
        params = SamplingParams(rng.randrange(1, 40), temperature=temperature, seed=index, ignore_eos=True)
        yield prompt, params, rng.choice(TREES)


@pytest.mark.parametrize("max_batch", [3, 4])
def test_every_request_gets_the_tokens_that_it_gets_alone(load, host, max_batch):
    engine = load(Limits(256, max_batch, 20))
    asked = list(requests(16, seed=max_batch))
    handles = [engine.submit(prompt, params, tree=tree, plain=tree is None) for prompt, params, tree in asked]
    for handle, (prompt, params, _) in zip(handles, asked, strict=True):
        alone = [token for step in host.steps(host.request(prompt, params), None) for token in step.tokens]
        assert handle.result(120).token_ids == alone
    stats = engine.stats()
    assert stats.ended == {"length": 16}
    assert stats.steps < stats.tokens / 2  # they ran together
    counts = engine.sessions.graph_counts
    assert counts["replays"] > 0
    assert counts["fallbacks"] == 0


def lanes(engine, count):
    rows = count * LIMITS.max_rows
    batch = engine.sessions.batch(BatchSize(LIMITS.max_context, max(rows, 259), rows, count))
    return [Session(batch, lane) for lane in range(count)]


def test_a_pass_of_three_runs_a_bucket_of_four(load, host):
    """Ragged texts and trees, one column without a sequence; the fourth lane's text is not in view."""
    forked = chain([3, 4, 5])._replace(parents=[-1, 0, 0], depths=[0, 1, 1])
    plans = [PassPlan(forked, (0, 2), 2), PassPlan(chain([7])), PassPlan(chain([7, 8, 9]), (2,), 2)]
    sessions = lanes(load(), 4)
    alone = [host.session(256, 300) for _ in sessions]
    for pair in zip(sessions, alone, (3, 70, 9, 200), strict=True):
        tokens = [5 + 7 * place % 150 for place in range(pair[2])]
        for session in pair[:2]:
            session.forward(PassPlan(chain(tokens), decode=(len(tokens) - 1,), prompt=True))
            session.commit(range(len(tokens)))
    results = [
        (result.logits.copy(), result.guesses and result.guesses.top_logprobs.copy())
        for result in forward_together(sessions[:3], plans)
    ]
    view = sessions[0].batch.kv.view(range(3), 3)
    assert (len(view.places), view.seen.slots) == (4, range(128))
    for session, other, plan, (logits, guesses) in zip(sessions, alone, plans, results, strict=False):
        right = other.forward(plan)
        np.testing.assert_allclose(logits, right.logits, atol=1e-4)
        if plan.sources:
            np.testing.assert_allclose(guesses, right.guesses.top_logprobs, atol=1e-4)
        for each in (session, other):
            each.commit([0])
    for session, other in zip(sessions[:3], alone, strict=False):
        np.testing.assert_allclose(session.draft(3).top_logprobs, other.draft(3).top_logprobs, atol=1e-4)


def test_all_rows_of_a_prompt_come_home_in_pieces_that_the_engines_hold(load, host):
    engine = load()
    prompt = np.random.default_rng(6).integers(2, 190, 70).tolist()
    params = SamplingParams(4, ignore_eos=True, prompt_logprobs=1)
    found, right = engine.generate(prompt, params), host.generate(prompt, params, plain=True)
    assert found.token_ids == right.token_ids
    assert [one and one.token_id for one in found.prompt_logprobs] == [
        one and one.token_id for one in right.prompt_logprobs
    ]


@pytest.mark.parametrize("together", [1, 2, 3, 4])
def test_the_bytes_that_are_allowed_bound_the_lanes(load, together):
    """One lane there is at least."""
    manifest = load().manifest
    size = size_built_for(LIMITS, together, manifest.num_predictors)
    kv_bytes = cache_bytes(PREFIX, size_for(manifest, size))
    for less, lanes in ((0, together), (1, max(1, together - 1))):
        engine = load(kv_bytes=kv_bytes - less)
        engine.generate([5, 6], SamplingParams(2))
        assert [session.batch.size.lanes for session in engine.sessions._kept] == [lanes]
        assert less or engine.stats().held_bytes == kv_bytes
