"""Sequences of a batch get what each gets alone, whatever the others are."""

import numpy as np
import pytest

from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.passes.batch import Batch
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.passes.pass_shape import BatchSize
from firp.runtime.passes.session import Session, forward_together
from firp.runtime.trees.tree import chain

LENGTHS = (3, 70, 9)
FORKED = chain([3, 4, 5])._replace(parents=[-1, 0, 0], depths=[0, 1, 1])
PLANS = [
    PassPlan(FORKED, (0, 2), 2),
    PassPlan(chain([7])),
    PassPlan(chain([7, 8, 9, 10]), (3,), 2),
]


@pytest.fixture(scope="module")
def engine(family_bundle) -> Engine:
    return Engine.load(family_bundle("llama")[1], threads=1)


def prefilled(session, length):
    tokens = [5 + 7 * place % 150 for place in range(length)]
    session.forward(PassPlan(chain(tokens), decode=(length - 1,), prompt=True))
    session.commit(range(length))
    return session


def sessions(engine, lanes, capacity=100):
    size = BatchSize(capacity, 120, 60, lanes)
    batch = Batch(engine.manifest, engine.sessions.graphs, engine.backend.memory(), size)
    return [Session(batch, lane) for lane in range(lanes)]


@pytest.fixture(scope="module")
def alone(engine):
    """What each plan gives after its text, in a session of its own."""
    found = []
    for length, plan in zip(LENGTHS, PLANS, strict=True):
        session = prefilled(engine.session(100, 80), length)
        result = session.forward(plan)
        session.commit([0])
        found.append((result.logits.copy(), session.draft(3).top_logprobs.copy(), result.guesses))
    return found


def check(session, result, expected):
    logits, drafted, guesses = expected
    np.testing.assert_allclose(result.logits, logits, atol=1e-4)
    assert (result.guesses_after(0) is None) == (0 not in result.sources)
    if result.sources and len(guesses.top_ids):
        last = result.sources[-1]
        assert result.guesses_after(last).top_ids.shape[0] == 2
    session.commit([0])
    np.testing.assert_allclose(session.draft(3).top_logprobs, drafted, atol=1e-4)


def test_ragged_texts_and_trees_of_one_pass_are_those_of_passes_alone(engine, alone):
    together = [prefilled(s, n) for s, n in zip(sessions(engine, 3), LENGTHS, strict=True)]
    results = forward_together(together, PLANS)
    for session, result, expected in zip(together, results, alone, strict=True):
        check(session, result, expected)


def test_lanes_that_changed_places_keep_their_text(engine, alone):
    first, second, third = (prefilled(s, n) for s, n in zip(sessions(engine, 3), LENGTHS, strict=True))
    first.batch.swap(0, 2)
    first.lane, third.lane = 2, 0
    results = forward_together([third, second, first], PLANS[::-1])
    for session, result, expected in zip([third, second, first], results, alone[::-1], strict=True):
        check(session, result, expected)


def test_a_batch_that_grows_keeps_its_texts(engine, alone):
    (first,) = sessions(engine, 1, capacity=16)
    prefilled(first, 3)
    first.batch.resize(BatchSize(100, 120, 60, 3))
    second, third = (Session(first.batch, lane) for lane in (1, 2))
    prefilled(second, 70)
    prefilled(third, 9)
    results = forward_together([first, second, third], PLANS)
    for session, result, expected in zip([first, second, third], results, alone, strict=True):
        check(session, result, expected)


def test_a_pass_of_some_lanes_leaves_the_others_alone(engine, alone):
    together = [prefilled(s, n) for s, n in zip(sessions(engine, 3), LENGTHS, strict=True)]
    together[1].forward(PassPlan(chain([1] * 30)))  # rejected
    together[2].forward(PassPlan(chain([2] * 5)))
    results = forward_together(together[:2], PLANS[:2])
    for session, result, expected in zip(together[:2], results, alone[:2], strict=True):
        check(session, result, expected)


def test_a_pass_larger_than_the_batch_is_refused(engine):
    together = sessions(engine, 3)
    with pytest.raises(FirpError, match="pass larger than the session . got 123 rows"):
        forward_together(together, [PassPlan(chain([5] * 41), decode=(0,))] * 3)


def test_a_text_that_is_taken_over_is_laid_out_once(engine, monkeypatch):
    first, _ = sessions(engine, 2, capacity=400)
    for _ in range(3):
        tokens = [5 + 7 * place % 150 for place in range(64)]
        first.forward(PassPlan(chain(tokens), decode=(63,), prompt=True))
        first.commit(range(64))
    blocks = [first.copy_slots(start, start + 64) for start in (0, 64, 128)]
    expected = first.forward(PassPlan(chain([9]))).logits.copy()
    (other,) = sessions(engine, 1, capacity=400)
    prefilled(other, 3)
    moved = []
    lay_out = other.batch.memory.lay_out
    monkeypatch.setattr(other.batch.memory, "lay_out", lambda *sizes: moved.append(1) or lay_out(*sizes))
    other.take_over(first.tokens, blocks)
    assert len(moved) == 1
    assert other.tokens == first.tokens
    np.testing.assert_array_equal(other.forward(PassPlan(chain([9]))).logits, expected)
