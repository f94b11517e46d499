"""Requests that are ended at any moment, by anybody, and an engine that is closed from anywhere: nothing
is left over, and nobody waits for ever.
"""

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.observer import NullObserver
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.handle import Handle
from firp.runtime.scheduling.service import EngineOptions

EVENTS = [name for name in vars(NullObserver) if name[0] != "_"]
LONG = SamplingParams(100, ignore_eos=True)


@pytest.fixture
def load(family_bundle):
    made = []

    def load(observer=None, **options):
        bundle, options = family_bundle("llama")[1], EngineOptions(**options)
        made.append(Engine.load(bundle, threads=1, check_hashes=False, options=options, observer=observer))
        return made[-1]

    yield load
    for engine in made:
        engine.close()


class Calling(NullObserver):
    """Does something at the first event of a kind."""

    def __init__(self, event, act):
        setattr(self, event, self.call)
        self.act = act

    def call(self, *_):
        act, self.act = self.act, lambda: None
        act()


@pytest.mark.parametrize("event", EVENTS)
def test_an_observer_may_close_the_engine(load, event):
    engine = load(Calling(event, lambda: engine.close()), max_batch=1)
    reasons = []

    def ask():
        handles = [engine.submit([5, 6], LONG)]
        reasons.extend(handle.result(60).finish_reason for handle in handles)

    caller = threading.Thread(target=ask, daemon=True)  # one that hangs is to fail this test, not to stop it
    caller.start()
    caller.join(60)
    assert reasons == ["length" if event == "ended" else "cancelled"]
    engine.close()
    assert not engine._service._worker._thread.is_alive()
    assert engine.stats().held_bytes == 0


def test_a_cancel_that_fails_ends_its_request_alone(load):
    class Gone:
        def is_set(self):
            raise BrokenPipeError("the process that had it has ended")

    engine = load()
    good, bad = engine.submit([5, 6], LONG), engine.submit([5, 6], LONG, cancel=Gone())
    with pytest.raises(FirpError, match="cancel fails . got the process that had it has ended"):
        bad.result(60)
    assert good.result(60).finish_reason == "length"
    assert engine.stats().ended == {"error": 1, "length": 1}


def test_an_interrupt_while_a_request_is_handed_over_leaves_nothing(load):
    def interrupt():
        raise KeyboardInterrupt

    engine = load(Calling("submitted", interrupt), max_batch=1)
    with pytest.raises(KeyboardInterrupt):
        engine.submit([5, 6], LONG, request_id="mine")
    after = engine.submit([5, 6], LONG)
    assert after.result(60).finish_reason == "length"
    assert engine.stats().ended == {"cancelled": 1, "length": 1}
    assert engine.generate([5], SamplingParams(2), request_id="mine").token_ids


def test_whoever_waits_a_short_time_again_and_again_leaves_nothing():
    handle = Handle("one")

    async def poll():
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(handle.wait(), 0.001)

    asyncio.run(poll())
    assert handle._wake == []


class Counting(NullObserver):
    """Requests that are open, and tokens told of."""

    def __init__(self):
        self.open, self.counts = set(), [0, 0]

    def submitted(self, request_id):
        self.open.add(request_id)

    def tokens(self, request_id, count, ms_since_last):
        self.counts[0] += count

    def ended(self, request_id, reason, prompt_tokens, tokens, ms):
        self.open.remove(request_id)
        self.counts[1] += tokens


def test_a_storm_of_cancellations_leaves_nothing_and_changes_no_token(load):
    rng = random.Random(3)
    observer = Counting()
    engine = load(observer, max_batch=8, max_queue=200)
    asked = [([rng.randrange(3, 190) for _ in range(rng.choice([1, 17, 120]))], i) for i in range(12)]
    asked = [
        (prompt, SamplingParams(rng.randrange(1, 40), seed=i, temperature=i % 2, ignore_eos=True))
        for prompt, i in asked
    ]
    expected = [engine.generate(prompt, params, plain=True).token_ids for prompt, params in asked]

    def one(number):
        rng = random.Random(number)
        which, moment = rng.randrange(len(asked)), rng.choice([0, 0.002, 0.02]) * rng.random()
        prompt, params = asked[which]
        event = threading.Event()
        way = number % 5
        if way == 0:  # whoever listened leaves, at some chunk or none
            stream = engine.stream(prompt, params)
            for _ in range(rng.randrange(3)):
                next(stream, None)
            del stream
            return True
        if way == 1:  # a task that ends
            answer = asyncio.wait_for(engine.agenerate(prompt, params), moment)
            try:
                return asyncio.run(answer).token_ids == expected[which]
            except TimeoutError:
                return True
        handle = engine.submit(prompt, params, cancel=event)
        end = {2: handle.cancel, 3: event.set, 4: lambda: None}[way]
        threading.Timer(moment, end).start()
        found = handle.result(120)
        whole = found.finish_reason == "length"
        return found.token_ids == expected[which][: None if whole else len(found.token_ids)]

    with ThreadPoolExecutor(12) as callers:
        assert all(callers.map(one, range(200)))
    end = time.monotonic() + 60
    while observer.open and time.monotonic() < end:
        time.sleep(0.01)
    stats = engine.stats()
    assert not observer.open and observer.counts == [stats.tokens] * 2
    assert (stats.active, stats.waiting, stats.cache_bytes) == (0, 0, 0)
    assert sum(stats.ended.values()) == stats.submitted > 150
    assert min(stats.ended["cancelled"], stats.ended["length"]) > 20
    assert [engine.generate(*one).token_ids for one in asked] == expected
    engine.close()
    assert engine.stats().held_bytes == 0
