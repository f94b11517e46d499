"""Where the guesses of a pass stand: source by source."""

import numpy as np

from firp.runtime.passes.pass_plan import Pass, PassPlan
from firp.runtime.trees.guesses import Guesses
from firp.runtime.trees.tree import chain

LISTS = np.arange(8).reshape(4, 2)  # of 2 sources, 2 offsets each
NONE = np.empty((0, 2))


def test_all_rows_of_a_tree_are_decoded():
    assert PassPlan(chain([5, 6, 7])).decoded == (0, 1, 2)


def test_of_a_prompt_only_the_rows_that_were_named():
    assert PassPlan(chain([5, 6, 7]), decode=(2,)).decoded == (2,)


def test_guesses_of_a_source_are_those_of_its_own_pseudo_rows():
    found = Pass(None, NONE, NONE, Guesses(LISTS, LISTS / 100), (0, 2), 2)
    np.testing.assert_array_equal(found.guesses_after(0).top_ids, LISTS[:2])
    np.testing.assert_array_equal(found.guesses_after(2).top_ids, LISTS[2:])
    np.testing.assert_array_equal(found.guesses_after(2).top_logprobs, LISTS[2:] / 100)


def test_a_row_that_was_no_source_has_no_guesses():
    assert Pass(None, NONE, NONE, Guesses(LISTS, LISTS), (0, 2), 2).guesses_after(1) is None


def test_guesses_outlive_their_pass():
    """Others run before they are used, and results are views of memory that is used again."""
    ids, logprobs = np.arange(12).reshape(4, 3), np.zeros((4, 3), np.float32)
    result = Pass(None, ids, logprobs, Guesses(ids, logprobs), (0, 5), 2)
    guesses = result.guesses_after(5)
    ids[...] = 10**9
    np.testing.assert_array_equal(guesses.top_ids, [[6, 7, 8], [9, 10, 11]])
