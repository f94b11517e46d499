"""FIRP's drafts come from the row that was accepted last, or there are none."""

import numpy as np

from firp.runtime.drafters.firp import FirpDrafter
from firp.runtime.passes.pass_plan import Pass
from firp.runtime.passes.request import Request
from firp.runtime.passes.sequence import Sequence
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.guesses import Guesses
from firp.runtime.trees.tree_config import TreeConfig

SEQUENCE = Sequence(Request((2, 9), SamplingParams(10), frozenset(), 10), 100)
IDS = np.array([[11, 12], [13, 14], [21, 22], [23, 24]])  # 2 sources, 2 offsets each
LOGPROBS = np.log(np.tile([0.8, 0.1], (4, 1)))
NONE = np.empty((0, 2))


def drafter(sources=2):
    return FirpDrafter(TreeConfig("dynamic", 3, sources), 2, None, True)


def test_drafts_are_those_of_the_row_accepted_last():
    made = drafter()
    made.observe([0, 1], Pass(None, NONE, NONE, Guesses(IDS, LOGPROBS), (0, 1), 2))
    assert made.propose(SEQUENCE, None, 5).tree.tokens == [9, 21, 23]
    made.observe([0], Pass(None, NONE, NONE, Guesses(IDS, LOGPROBS), (0, 1), 2))
    assert made.propose(SEQUENCE, None, 5).tree.tokens == [9, 11, 13]


def test_after_a_row_that_was_no_source_the_root_drafts_alone():
    made = drafter()
    made.observe([0, 1], Pass(None, NONE, NONE, Guesses(IDS[:2], LOGPROBS[:2]), (0,), 2))
    proposal = made.propose(SEQUENCE, None, 5)
    assert proposal.tree.tokens == [9]
    assert (proposal.sources, proposal.offsets) == ((0,), 2)


def test_before_the_last_token_nothing_is_drafted():
    made = drafter()
    made.observe([0], Pass(None, NONE, NONE, Guesses(IDS, LOGPROBS), (0, 1), 2))
    proposal = made.propose(SEQUENCE, None, 0)
    assert proposal.tree.tokens == [9]
    assert (proposal.sources, proposal.offsets) == ((), 0)
