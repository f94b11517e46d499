"""Requests that run together get what each gets alone; what one of them does costs no other."""

import asyncio
import logging
import os
import random
import threading
import time

import pytest

from firp.runtime.engine import Engine
from firp.runtime.errors import EngineBusyError, EngineClosedError, FirpError, RequestTooLargeError
from firp.runtime.loop.picker import Picker
from firp.runtime.observer import NullObserver
from firp.runtime.passes.request import Needs
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling import scheduler
from firp.runtime.scheduling.pieces import LEAST
from firp.runtime.scheduling.service import EngineOptions
from firp.runtime.trees.tree_config import DRAFTERS, TreeConfig

TREES = (None, TreeConfig("dynamic", 6, 2), TreeConfig("dynamic", 4, 0), TreeConfig.lookup(5))


@pytest.fixture(scope="module")
def bundle(family_bundle):
    return family_bundle("llama")[1]


@pytest.fixture
def load(bundle):
    made = []

    def load(observer=None, **options):
        options = EngineOptions(**options)
        made.append(Engine.load(bundle, threads=1, check_hashes=False, options=options, observer=observer))
        return made[-1]

    yield load
    for engine in made:
        engine.close()


def requests(count, seed=0):
    rng = random.Random(seed)
    for index in range(count):
        prompt = [rng.randrange(3, 190) for _ in range(rng.choice([1, 2, 5, 17, 60, 120]))]
        temperature = rng.choice([0.0, 0.9])
        params = SamplingParams(rng.randrange(1, 40), temperature=temperature, seed=index, ignore_eos=True)
        yield prompt, params, rng.choice(TREES)


def alone(engine, prompt, params, tree):
    return [token for step in engine.steps(engine.request(prompt, params), tree) for token in step.tokens]


@pytest.mark.parametrize("max_batch", [1, 3, 8])
def test_every_request_gets_the_tokens_that_it_gets_alone(load, max_batch):
    engine = load(max_batch=max_batch)
    asked = list(requests(24, seed=max_batch))
    expected = [alone(engine, *one) for one in asked]
    handles = [engine.submit(prompt, params, tree=tree, plain=tree is None) for prompt, params, tree in asked]
    assert [handle.result(120).token_ids for handle in handles] == expected
    stats = engine.stats()
    assert stats.ended == {"length": 24}
    assert stats.tokens == sum(map(len, expected))
    assert (stats.active, stats.waiting, stats.cache_bytes) == (0, 0, 0)


def test_requests_that_come_while_others_run_and_end_early_change_nothing(load):
    engine = load(max_batch=4)
    asked = list(requests(30, seed=5))
    expected = [alone(engine, *one) for one in asked]
    handles, rng = [], random.Random(1)
    for prompt, params, tree in asked:
        handles.append(engine.submit(prompt, params, tree=tree, plain=tree is None))
        if rng.random() < 0.3:
            handles[rng.randrange(len(handles))].cancel()
        time.sleep(rng.choice([0, 0, 0.01]))
    for handle, tokens in zip(handles, expected, strict=True):
        result = handle.result(120)
        assert result.token_ids == tokens[: len(result.token_ids)]
        assert result.finish_reason == "cancelled" or result.token_ids == tokens
    assert engine.stats().active == 0


def test_a_full_queue_refuses_at_once_and_takes_again(load):
    engine = load(max_batch=1, max_queue=2)
    long = SamplingParams(200, ignore_eos=True)
    running = engine.submit([5, 6], long)
    next(iter(running))  # it runs, so it is not in the queue
    waiting = [engine.submit([5, 6], long) for _ in range(2)]
    with pytest.raises(EngineBusyError, match="the engine is busy . got 2 requests in the queue"):
        engine.submit([5, 6], long)
    for handle in (running, *waiting):
        handle.cancel()
    assert [handle.result(60).finish_reason for handle in (running, *waiting)] == ["cancelled"] * 3
    assert engine.generate([5, 6], SamplingParams(3)).token_ids


def test_what_free_lanes_take_is_no_queue(load, monkeypatch):
    engine = load(max_batch=3, max_queue=1)
    step, goes_on = scheduler.Scheduler.step, threading.Event()
    monkeypatch.setattr(scheduler.Scheduler, "step", lambda self: goes_on.wait(60) and step(self))
    handles = [engine.submit([5, 6], SamplingParams(3)) for _ in range(4)]
    with pytest.raises(EngineBusyError, match="got 1 requests in the queue, expected fewer than 1"):
        engine.submit([5, 6])
    goes_on.set()
    assert all(handle.result(60).token_ids for handle in handles)
    assert engine.generate([5, 6], SamplingParams(3)).token_ids


def test_the_id_of_a_request_is_of_no_other_before_its_end(load):
    engine = load(max_batch=1)
    long = SamplingParams(200, ignore_eos=True)
    running = engine.submit([5, 6], long, request_id="request-1")
    next(iter(running))
    waiting = engine.submit([5, 6], long)
    assert waiting.id == "request-2"
    for taken in (running.id, waiting.id):
        with pytest.raises(FirpError, match=f"request id in use . got '{taken}', expected a new one"):
            engine.submit([5, 6], request_id=taken)
    for handle in (running, waiting):
        handle.cancel()
        handle.result(60)
    assert engine.generate([5, 6], SamplingParams(3), request_id="request-1").token_ids
    assert engine.stats().submitted == 3


def test_a_deadline_counts_in_the_queue_too(load):
    engine = load(max_batch=1)
    running = engine.submit([5, 6], SamplingParams(200, ignore_eos=True))
    late = engine.submit([5, 6], SamplingParams(200), deadline_s=1e-6)
    result = late.result(60)
    assert (result.finish_reason, result.token_ids) == ("deadline", [])
    running.cancel()
    with pytest.raises(FirpError, match="bad deadline s"):
        engine.submit([5], deadline_s=0)


def test_a_request_that_could_never_run_is_refused_with_both_numbers(load):
    engine = load(kv_bytes=100_000)
    with pytest.raises(RequestTooLargeError, match=r"got 250 tokens, \d+ bytes, expected at most 100000"):
        engine.submit([5] * 50, SamplingParams(200))
    assert engine.generate([5], SamplingParams(3)).token_ids


def test_requests_wait_for_memory_and_none_is_lost(load):
    engine = load(max_batch=8, kv_bytes=200_000)
    asked = [([5 + n, 6], SamplingParams(60, ignore_eos=True), None) for n in range(6)]
    expected = [alone(engine, *one) for one in asked]
    handles = [engine.submit(prompt, params, plain=True) for prompt, params, _ in asked]
    assert [handle.result(60).token_ids for handle in handles] == expected


def test_a_closed_engine_ends_its_requests_and_takes_no_more(load):
    engine = load(max_batch=1)
    handles = [engine.submit([5, 6], SamplingParams(200, ignore_eos=True)) for _ in range(3)]
    with engine:
        next(iter(handles[0]))
    assert {handle.result(1).finish_reason for handle in handles} == {"cancelled"}
    assert not engine.healthy
    with pytest.raises(EngineClosedError, match="the engine is closed"):
        engine.submit([5])


def test_a_fork_says_that_the_engine_has_stayed_behind(load):
    engine = load()
    engine.generate([5], SamplingParams(2))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            engine.submit([5], SamplingParams(2))
        except EngineClosedError as error:
            os.write(write, str(error).encode())
        finally:
            engine.close()
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert b"got a fork of the process that loaded it" in os.read(read, 1000)
    assert engine.generate([5], SamplingParams(2)).token_ids


def test_what_fails_in_one_request_ends_that_one_alone(load, monkeypatch):
    engine = load(max_batch=4)
    pick = Picker.__call__

    def poisoned(self, *arguments):
        if self.params.seed == 13 and arguments[1] > 10:
            raise FirpError("the model's logits are not finite")
        return pick(self, *arguments)

    expected = alone(engine, [5, 6], SamplingParams(30, ignore_eos=True), None)
    monkeypatch.setattr(Picker, "__call__", poisoned)
    handles = [engine.submit([5, 6], SamplingParams(30, ignore_eos=True, seed=seed)) for seed in (1, 13, 2)]
    with pytest.raises(FirpError, match="not finite"):
        handles[1].result(60)
    assert [handles[place].result(60).token_ids for place in (0, 2)] == [expected] * 2
    assert engine.stats().ended == {"error": 1, "length": 2}
    assert engine.healthy


class Ends(NullObserver):
    """Keeps the requests that were submitted, and how each ended."""

    def __init__(self):
        self.submits, self.ends = [], []

    def submitted(self, request_id):
        self.submits.append(request_id)

    def ended(self, request_id, reason, prompt_tokens, tokens, ms):
        self.ends.append((request_id, reason))


@pytest.mark.parametrize("place", ["step", "_forget"])  # before a pass, while a lane is freed
def test_a_thread_that_dies_leaves_nobody_waiting_and_nothing_held(place, load, monkeypatch, caplog):
    ends = Ends()
    engine = load(ends, max_batch=2)
    real, dies = getattr(scheduler.Scheduler, place), threading.Event()

    def dying(self, *arguments):
        if dies.is_set():
            dies.clear()
            raise MemoryError("no room")
        return real(self, *arguments)

    monkeypatch.setattr(scheduler.Scheduler, place, dying)
    handles = [engine.submit([5, 6], SamplingParams(200, ignore_eos=True)) for _ in range(3)]
    next(iter(handles[1]))
    dies.set()
    handles[0].cancel()
    for handle in handles:
        with pytest.raises(EngineClosedError, match="thread has died . got MemoryError: no room"):
            handle.result(60)
    engine._service._worker._thread.join(60)
    assert not engine.healthy
    with pytest.raises(EngineClosedError, match="got MemoryError: no room"):
        engine.submit([5])
    assert ends.ends == [(name, "error") for name in (ends.submits[2], *ends.submits[:2])]
    stats = engine.stats()
    assert (stats.active, stats.waiting, stats.cache_bytes, stats.ended) == (0, 0, 0, {"error": 3})
    assert sum(group.held_bytes for group in engine._service._lanes.groups) == 0
    assert "no room" in caplog.text


def test_what_an_observer_raises_is_logged_once_and_harms_nobody(load, caplog):
    class Raising:
        """Has none of an observer's methods but one, which raises."""

        def step(self, report):
            raise RuntimeError("a bug of an observer")

    engine = load(Raising())
    params = SamplingParams(8, ignore_eos=True)
    expected = alone(engine, [5, 6], params, None)
    for _ in range(2):
        assert engine.generate([5, 6], params).token_ids == expected
    assert engine.healthy
    logged = [record.args for record in caplog.records if record.levelno == logging.ERROR]
    assert sorted(logged) == [("Raising", name) for name in sorted(vars(NullObserver)) if name[0] != "_"]
    assert "a bug of an observer" in caplog.text


def test_a_long_prompt_is_computed_between_the_steps_of_others(load):
    engine = load(max_batch=2)
    running = engine.submit([5, 6], SamplingParams(200, ignore_eos=True), plain=True)
    chunks = iter(running)
    for _ in range(12):
        next(chunks)
    before = len(running._chunks)
    long = engine.submit([7] * 240, SamplingParams(2), plain=True)
    next(iter(long))
    between = len(running._chunks) - before
    pieces = 240 / LEAST  # if each takes longer than two plain steps, and every other step has none
    assert 2 <= between <= 2 * pieces + 12
    running.cancel()


def test_handles_are_awaited_and_iterated_in_an_event_loop(load):
    engine = load(max_batch=4)
    params = SamplingParams(12, ignore_eos=True)
    prompts = [[5, 6], [7, 8, 9], [10] * 30]
    expected = [alone(engine, prompt, params, None) for prompt in prompts]

    async def main():
        results = await asyncio.gather(*(engine.agenerate(prompt, params) for prompt in prompts))
        streamed = [token async for chunk in engine.astream(prompts[0], params) for token in chunk.token_ids]
        async for _ in engine.astream([5], SamplingParams(200, ignore_eos=True)):
            break  # whoever leaves ends the request
        return [result.token_ids for result in results], streamed

    assert asyncio.run(main()) == (expected, expected[0])
    deadline = time.monotonic() + 30
    while engine.stats().active and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.stats().ended == {"length": 4, "cancelled": 1}


def test_samples_differ_in_their_seeds(load):
    engine = load()
    params = SamplingParams(10, temperature=1.0, seed=3, ignore_eos=True)
    expected = [
        alone(engine, [5, 6], SamplingParams(10, temperature=1.0, seed=seed, ignore_eos=True), None)
        for seed in (3, 4, 5)
    ]
    handles = engine.submit_samples([5, 6], params, 3)
    waited_for = engine.generate_samples([5, 6], params, 3)
    awaited = asyncio.run(engine.agenerate_samples([5, 6], params, 3))
    for found in ([handle.result(60) for handle in handles], waited_for, awaited):
        assert [one.token_ids for one in found] == expected


def test_many_threads_share_an_engine(load):
    engine = load(max_queue=100)
    expected = alone(engine, [5, 6], SamplingParams(5, ignore_eos=True), None)
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(engine.generate([5, 6], SamplingParams(5, ignore_eos=True)).token_ids)
        )
        for _ in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [expected] * 40


@pytest.mark.parametrize("prefix_bytes", [0, 1 << 20])
def test_prompts_that_begin_alike_share_what_was_computed(load, prefix_bytes):
    """Also while the request that computed it still decodes."""
    engine = load(prefix_bytes=prefix_bytes)
    beginning = [3 + 7 * place % 150 for place in range(130)]
    long = SamplingParams(100, ignore_eos=True)
    running = engine.submit([*beginning, 5], long)
    next(iter(running))
    params = SamplingParams(8, ignore_eos=True)
    for end in (6, 7):
        expected = alone(engine, [*beginning, end], params, None)
        result = engine.generate([*beginning, end], params)
        assert result.token_ids == expected
    assert result.stats.reused_tokens == 129  # by now an idle lane holds it, too
    assert (engine.stats().prefixes.tokens >= 128) == (prefix_bytes > 0)
    running.cancel()
    assert engine.stats().prefixes.bytes <= prefix_bytes


def test_after_a_long_text_short_ones_cost_what_they_cost_before(load):
    """The slots that passes look at follow the texts that run, while others run and when they have
    ended.
    """
    engine = load(max_batch=2)
    lanes = engine._service._lanes
    short = SamplingParams(150, ignore_eos=True)
    expected = alone(engine, [5, 6], short, None)
    running = engine.submit([5, 6], short, plain=True)
    assert engine.generate([7] * 200, SamplingParams(2, ignore_eos=True)).finish_reason == "length"
    again = engine.generate([8, 9], SamplingParams(3, ignore_eos=True))
    assert running.result(60).token_ids == expected
    assert again.token_ids == alone(engine, [8, 9], SamplingParams(3, ignore_eos=True), None)
    assert engine.generate([5, 6], SamplingParams(3, ignore_eos=True)).token_ids == expected[:3]
    batches = [group._batch for group in lanes.groups if group._batch]
    assert min(batch.kv.view(range(1), 1).seen.columns for batch in batches) == 64


def test_a_batch_that_idles_gives_its_memory_to_requests_that_run(load):
    one = load(max_batch=2)._service._lanes.bytes_alone(Needs(244, 259, 1))
    engine = load(max_batch=2, kv_bytes=one * 3 // 2)
    groups = engine._service._lanes.groups
    running = engine.submit([5, 6], SamplingParams(30, ignore_eos=True), plain=True)
    assert engine.generate([7] * 200, SamplingParams(2)).token_ids  # beside it, in another batch
    assert all(group.held_bytes for group in groups)
    running.result(60)
    prompt = [9] * 240
    expected = alone(engine, prompt, SamplingParams(4, ignore_eos=True), None)
    assert engine.generate(prompt, SamplingParams(4, ignore_eos=True)).token_ids == expected
    assert min(group.held_bytes for group in groups) == 0


def test_what_is_computed_of_a_prompt_is_shared_before_its_end(load):
    """A request that is cancelled halfway leaves the blocks that it has computed."""
    engine = load(max_batch=2)
    running = engine.submit([5, 6], SamplingParams(250, ignore_eos=True), plain=True)
    next(iter(running))
    prompt = [3 + 7 * place % 150 for place in range(220)]
    handle = engine.submit(prompt, SamplingParams(2), plain=True)
    while not engine.stats().prefixes.bytes and not handle.done:
        time.sleep(0.001)
    handle.cancel()
    running.cancel()
    handle.result(60)
    expected = alone(engine, prompt, SamplingParams(4, ignore_eos=True), None)
    result = engine.generate(prompt, SamplingParams(4, ignore_eos=True))
    assert result.token_ids == expected
    assert result.stats.reused_tokens >= 64


def test_accepted_drafts_are_counted_by_drafter_and_depth(load):
    engine = load(max_batch=2)
    params = SamplingParams(40, ignore_eos=True)
    prompt = [5, 6, 7, 8] * 6
    trees = (
        TreeConfig("dynamic", 6, 2),
        TreeConfig.lookup(5),
        TreeConfig("dynamic", 6, 2, drafters=DRAFTERS),
    )
    handles = [engine.submit(prompt, params, tree=tree) for tree in trees]
    results = [handle.result(60).stats for handle in handles]
    assert set(results[0].accepted_by_drafter) <= {"firp"}
    assert set(results[1].accepted_by_drafter) == {"lookup"}
    for stats in results:
        assert sum(stats.accepted_by_depth) == stats.decoded_tokens - stats.steps
    counts = engine.stats()
    total = {}
    for stats in results:
        for drafter, depths in stats.accepted_by_drafter.items():
            for depth, count in enumerate(depths, 1):
                if count:
                    by_depth = total.setdefault(drafter, {})
                    by_depth[depth] = by_depth.get(depth, 0) + count
    assert counts.accepted == total
    assert counts.accepted["lookup"][1] > 0
    for drafter, depths in counts.accepted.items():
        assert all(count <= counts.drafted[drafter][depth] for depth, count in depths.items())
