"""Where the guesses of a pass stand: after those of the tree, source by source."""

import numpy as np

from firp.runtime.passes.pass_plan import Pass, PassPlan
from firp.runtime.trees.tree import chain

LISTS = np.arange(14).reshape(7, 2)  # of 3 tree rows, then of 2 sources, 2 offsets each


def test_all_rows_of_a_tree_are_decoded():
    assert PassPlan(chain([5, 6, 7])).decoded == (0, 1, 2)


def test_of_a_prompt_only_the_rows_that_were_named():
    assert PassPlan(chain([5, 6, 7]), decode=(2,)).decoded == (2,)


def test_guesses_of_a_source_are_those_of_its_own_pseudo_rows():
    found = Pass(None, LISTS, LISTS / 100, (0, 1, 2), (0, 2), 2)
    np.testing.assert_array_equal(found.guesses_after(0).top_ids, LISTS[3:5])
    np.testing.assert_array_equal(found.guesses_after(2).top_ids, LISTS[5:7])
    np.testing.assert_array_equal(found.guesses_after(2).top_logprobs, LISTS[5:7] / 100)


def test_guesses_stand_after_the_decoded_rows_alone():
    found = Pass(None, LISTS[:3], LISTS[:3], (2,), (2,), 2)
    np.testing.assert_array_equal(found.guesses_after(2).top_ids, LISTS[1:3])


def test_a_row_that_was_no_source_has_no_guesses():
    assert Pass(None, LISTS, LISTS, (0, 1, 2), (0, 2), 2).guesses_after(1) is None
