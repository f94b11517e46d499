"""Passes of one session: what does not fit is refused, and drafts are the same whichever pass makes
them.
"""

import numpy as np
import pytest

from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError, SessionBusyError
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.trees.tree import chain

PROMPT = [3, 14, 15, 92, 65, 35]
LAST = len(PROMPT) - 1


@pytest.fixture(scope="module")
def engine(family_bundle) -> Engine:
    return Engine.load(family_bundle("llama")[1])


@pytest.fixture
def session(engine):
    return engine.session(16, 12)


def test_a_draft_pass_guesses_what_riding_pseudo_rows_guess(session):
    riding = session.forward(PassPlan(chain(PROMPT), (LAST,), 3)).guesses_after(LAST)
    expected = riding.top_ids.copy(), riding.top_logprobs.copy()
    session.commit(range(len(PROMPT)))
    apart = session.draft(3)
    np.testing.assert_array_equal(apart.top_ids, expected[0])
    np.testing.assert_allclose(apart.top_logprobs, expected[1], atol=1e-4)


def test_fewer_offsets_are_the_first_ones(session):
    whole = session.forward(PassPlan(chain(PROMPT), (1, LAST), 3))
    expected = [whole.guesses_after(row).top_ids[:2].copy() for row in (1, LAST)]
    fewer = session.forward(PassPlan(chain(PROMPT), (1, LAST), 2))
    np.testing.assert_array_equal([fewer.guesses_after(row).top_ids for row in (1, LAST)], expected)


def test_pseudo_rows_change_nothing_of_the_tree(session):
    alone = session.forward(PassPlan(chain(PROMPT))).logits.copy()
    riding = session.forward(PassPlan(chain(PROMPT), (0, LAST), 3)).logits
    np.testing.assert_allclose(riding, alone, atol=1e-4)


def test_a_pass_after_a_commit_sees_what_was_committed(session):
    whole = session.forward(PassPlan(chain(PROMPT), decode=(LAST,))).logits.copy()
    session.forward(PassPlan(chain([*PROMPT[:LAST], 7]), decode=(0,)))
    session.commit(range(LAST))  # without the 7
    again = session.forward(PassPlan(chain(PROMPT[LAST:]))).logits
    np.testing.assert_allclose(again, whole, atol=1e-4)


def test_logits_that_nobody_asks_for_stay_where_they_are(session):
    assert session.forward(PassPlan(chain(PROMPT), bring_logits=False)).logits is None


def test_a_pass_of_more_rows_than_the_session_has_is_refused(session):
    rows = session.batch.size.rows
    with pytest.raises(FirpError, match=f"pass larger than the session . got {rows + 1} rows"):
        session.forward(PassPlan(chain([5] * (rows + 1)), decode=(0,)))
    with pytest.raises(FirpError, match=f"got {rows + 1} rows"):
        session.forward(PassPlan(chain([5] * (rows - 2)), (0,), 3, (0,)))


def test_a_session_that_was_left_serves_the_next_caller(session):
    with session.exclusive():  # noqa: SIM117
        with pytest.raises(SessionBusyError, match="session in use"), session.exclusive():
            pass
    with session.exclusive():
        assert session.forward(PassPlan(chain(PROMPT))).logits.shape[0] == len(PROMPT)
