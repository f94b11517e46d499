"""Trees of several drafters under one budget of rows."""

import numpy as np

from firp.runtime.drafters.firp import FirpDrafter
from firp.runtime.drafters.lookup import LookupDrafter
from firp.runtime.drafters.merged import MergedDrafter
from firp.runtime.passes.pass_plan import Pass
from firp.runtime.passes.request import Request
from firp.runtime.passes.sequence import Sequence
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import DraftTree, merge_trees
from firp.runtime.trees.tree_config import DRAFTERS, FIRP, LOOKUP, TreeConfig


def sequence_of(tokens):
    sequence = Sequence(Request((tokens[0],), SamplingParams(500), frozenset(), 500), 1000)
    sequence.extend(tokens[1:])
    return sequence


def test_the_most_probable_nodes_of_both_stay():
    left = DraftTree([9, 1, 2], [-1, 0, 1], [0, 1, 2], [1.0, 0.6, 0.1], ["", FIRP, FIRP])
    right = DraftTree([9, 3, 4], [-1, 0, 1], [0, 1, 2], [1.0, 0.5, 0.4], ["", LOOKUP, LOOKUP])
    merged = merge_trees([left, right], rows=4)
    assert merged.tokens == [9, 1, 3, 4]
    assert merged.parents == [-1, 0, 0, 2]
    assert merged.depths == [0, 1, 1, 2]
    assert merged.drafters == ["", FIRP, LOOKUP, LOOKUP]


def test_a_node_of_both_is_one_row_with_the_higher_probability():
    left = DraftTree([9, 1, 2], [-1, 0, 1], [0, 1, 2], [1.0, 0.6, 0.5], ["", FIRP, FIRP])
    right = DraftTree([9, 1, 4], [-1, 0, 1], [0, 1, 2], [1.0, 0.8, 0.4], ["", LOOKUP, LOOKUP])
    merged = merge_trees([left, right], rows=8)
    assert merged.tokens == [9, 1, 2, 4]
    assert merged.probabilities == [1.0, 0.8, 0.5, 0.4]
    assert merged.drafters == ["", LOOKUP, FIRP, LOOKUP]  # whose guess was the surer one


def test_a_budget_of_one_row_is_the_root():
    tree = DraftTree([9, 1], [-1, 0], [0, 1], [1.0, 0.6], ["", FIRP])
    assert merge_trees([tree, tree], rows=1).tokens == [9]


def test_lookup_drafts_where_firp_has_nothing_to_say():
    tree = TreeConfig("dynamic", 4, 1, drafters=DRAFTERS)
    drafter = MergedDrafter(FirpDrafter(tree, 3, None, True), LookupDrafter(tree))
    drafter.observe([0], Pass(None, np.zeros((1, 4), np.int64), np.zeros((1, 4), np.float32), (0,)))
    proposal = drafter.propose(sequence_of([1, 2, 3, 4, 1, 2]), None, 8)
    assert proposal.tree.tokens == [2, 3, 4, 1]
    assert len(proposal.sources) == 1
    assert proposal.offsets == 3
