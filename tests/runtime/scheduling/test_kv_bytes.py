"""Caches take no more memory than they may, at any moment, and give back what they do not need."""

import random
import threading
import weakref

import pytest

from firp.runtime.backends.host import HostMemory
from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.passes.request import Needs
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling import lanes
from firp.runtime.scheduling.lanes import LOOK_SECONDS, default_bytes
from firp.runtime.scheduling.service import EngineOptions
from firp.runtime.trees.tree_config import TreeConfig

TREES = (None, TreeConfig("dynamic", 6, 2), TreeConfig.lookup(5))
CACHES = ("keys and values", "a lane that moves")


class Ledger:
    """Bytes of caches that live, and the most that ever did."""

    def __init__(self, monkeypatch):
        self.live = self.most = 0
        self._lock = threading.Lock()
        zeros = HostMemory.zeros

        def counted(memory, shape, dtype, purpose):
            array = zeros(memory, shape, dtype, purpose)
            if purpose in CACHES:
                self._add(array.nbytes)
                weakref.finalize(array, self._add, -array.nbytes)
            return array

        monkeypatch.setattr(HostMemory, "zeros", counted)

    def _add(self, count):
        with self._lock:
            self.live += count
            self.most = max(self.most, self.live)


@pytest.fixture
def load(family_bundle):
    made = []

    def load(**options):
        options = EngineOptions(prefix_bytes=0, **options)
        made.append(Engine.load(family_bundle("llama")[1], threads=1, check_hashes=False, options=options))
        return made[-1]

    yield load
    for engine in made:
        engine.close()


def lane(engine, tokens, rows=1):
    return engine._service._lanes.bytes_alone(Needs(tokens, 259, rows))


def alone(engine, prompt, params, tree):
    return [token for step in engine.steps(engine.request(prompt, params), tree) for token in step.tokens]


def requests(count, seed):
    rng = random.Random(seed)
    for index in range(count):
        prompt = [rng.randrange(3, 190) for _ in range(rng.choice([1, 3, 20, 70, 180]))]
        yield prompt, SamplingParams(rng.randrange(1, 40), seed=index, ignore_eos=True), rng.choice(TREES)


@pytest.mark.parametrize("seed", range(4))
def test_real_bytes_stay_within_the_bound_and_tokens_those_of_requests_alone(load, monkeypatch, seed):
    """Bounds from hardly one long text to about six; requests come in bursts and one after the other. With
    two of the bounds every step looks for what is not needed.
    """
    monkeypatch.setattr(lanes, "LOOK_SECONDS", (0.0, LOOK_SECONDS)[seed % 2])
    engine = load()
    asked = list(requests(16, seed))
    expected = [alone(engine, *one) for one in asked]
    kv_bytes = int(lane(engine, 220, 14) * (1.0, 1.6, 2.7, 6.2)[seed])
    engine = load(kv_bytes=kv_bytes)
    ledger, rng, handles = Ledger(monkeypatch), random.Random(seed), []
    for prompt, params, tree in asked:
        handles.append(engine.submit(prompt, params, tree=tree, plain=tree is None))
        if rng.random() < 0.3:
            rng.choice(handles).result(60)
    assert [handle.result(60).token_ids for handle in handles] == expected
    assert ledger.most <= kv_bytes
    assert ledger.most > kv_bytes / 3
    assert engine.stats().held_bytes >= ledger.live  # lanes that move take memory when they first do


def test_what_idle_lanes_hold_goes_for_a_long_request(load, monkeypatch):
    """Eight short ones, then a long one beside a short one that runs: what it needs is there."""
    engine = load()
    short, long = SamplingParams(20, ignore_eos=True), SamplingParams(4, ignore_eos=True)
    kv_bytes = 13 * lane(engine, 64)
    expected = alone(engine, [7] * 200, long, None)
    engine = load(kv_bytes=kv_bytes)
    ledger = Ledger(monkeypatch)
    for handle in [engine.submit([5, 6 + n], short, plain=True) for n in range(8)]:
        handle.result(60)
    running = engine.submit([5, 6], SamplingParams(40, ignore_eos=True), plain=True)
    next(iter(running))
    assert engine.generate([7] * 200, long, plain=True).token_ids == expected
    assert running.result(60).finish_reason == "length"
    assert ledger.most <= kv_bytes


def test_a_busy_engine_gives_back_what_a_long_request_needed(load, monkeypatch):
    engine = load(max_batch=8)
    params = SamplingParams(20, ignore_eos=True)
    expected = alone(engine, [5, 6], params, None)
    ledger, one = Ledger(monkeypatch), engine._service._lanes
    look_after, now = one.look_after, [0.0]
    monkeypatch.setattr(one, "look_after", lambda _: look_after(now[0]))
    for handle in [engine.submit([7 + n] * 200, params) for n in range(8)]:
        handle.result(60)
    held = ledger.live
    for _ in range(3):
        now[0] += LOOK_SECONDS
        assert engine.generate([5, 6], params).token_ids == expected
    assert ledger.live < held / 4
    assert ledger.live <= engine.stats().held_bytes


def test_a_bound_that_holds_no_request_is_refused(load):
    least = lane(load(), 2, 1)
    with pytest.raises(FirpError, match=f"kv_bytes holds no request . got {least - 1}, expected at least"):
        load(kv_bytes=least - 1)
    assert load(kv_bytes=least).generate([5], SamplingParams(1), plain=True).token_ids


def test_a_request_says_what_is_reserved_for_it(load, caplog):
    engine = load()
    with caplog.at_level("INFO", "firp.engine"):
        handle = engine.submit([5] * 30, SamplingParams(10), plain=True)
        assert handle.result(60)
    assert handle.kv_bytes == lane(engine, 40) > 0
    assert f"0 tokens reused, {handle.kv_bytes} bytes reserved" in caplog.text


@pytest.mark.parametrize(
    ("available", "kv_bytes", "expected"),
    [(800, None, (400, 200)), (800, 100, (100, 50)), (800, 700, (700, 200)), (None, None, (None, 0))],
)
def test_prefixes_take_at_most_half_of_what_a_user_gives_to_caches(available, kv_bytes, expected):
    assert default_bytes(available, None, kv_bytes) == expected
