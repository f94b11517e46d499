"""Acceptance follows the target's own picks, and nothing else."""

import numpy as np
import pytest
from hypothesis import given, strategies
from support.random_trees import paths_of, trees

from firp.runtime.loop.accept import accept
from firp.runtime.loop.picker import Picker
from firp.runtime.passes.pass_plan import Pass
from firp.runtime.passes.request import Request
from firp.runtime.passes.sequence import Sequence
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import DraftTree

#        5
#      6   7
#      8   8
DRAFTERS = ["", "firp", "lookup", "firp", "lookup"]
TREE = DraftTree([5, 6, 7, 8, 8], [-1, 0, 0, 1, 2], [0, 1, 1, 2, 2], [1.0, 0.9, 0.1, 0.9, 0.1], DRAFTERS)
GREEDY = Picker(Request((2, 3, 5), SamplingParams(10), frozenset(), 10))


def verified(*picks, logits=True):
    """A pass whose rows pick these tokens."""
    rows = np.eye(12, dtype=np.float32)[list(picks)] if logits else None
    top_ids = np.array([[pick, 0] for pick in picks])
    return Pass(rows, top_ids, np.zeros(top_ids.shape, np.float32))


def sequence(*ends):
    return Sequence(Request((2, 3, 5), SamplingParams(10), frozenset(ends), 10), 100)


@pytest.mark.parametrize("logits", [True, False], ids=["logits", "the list of the graph"])
@pytest.mark.parametrize(
    ("picks", "rows", "tokens"),
    [
        ((9, 1, 1, 1, 1), [0], [9]),  # no child holds it
        ((8, 1, 1, 1, 1), [0], [8]),  # only grandchildren do
        ((6, 9, 1, 1, 1), [0, 1], [6, 9]),
        ((7, 8, 8, 1, 4), [0, 2, 4], [7, 8, 4]),  # the improbable path, and its own child
        ((6, 8, 1, 3, 4), [0, 1, 3], [6, 8, 3]),
    ],
)
def test_the_walk_steps_to_the_child_that_the_target_picks(picks, rows, tokens, logits):
    assert accept(TREE, verified(*picks, logits=logits), sequence(), GREEDY) == (rows, tokens, False, None)


def test_accepted_drafts_are_told_by_drafter():
    assert accept(TREE, verified(7, 8, 8, 1, 4), sequence(), GREEDY).drafters(TREE) == ["lookup"] * 2
    assert accept(TREE, verified(9, 1, 1, 1, 1), sequence(), GREEDY).drafters(TREE) == []


@given(trees(), strategies.data())
def test_what_is_emitted_is_what_plain_decoding_says_one_token_after_the_other(tree, data):
    tokens = strategies.integers(0, 4)
    picks = data.draw(strategies.lists(tokens, min_size=len(tree.tokens), max_size=len(tree.tokens)))
    ends = data.draw(strategies.sets(tokens, max_size=2))
    said = dict(zip(paths_of(tree), picks, strict=True))  # by the model, after each text that it was shown
    path = ()
    while path in said:
        path += (said[path],)
        if path[-1] in ends:
            break
    found = accept(tree, verified(*picks), sequence(*ends), GREEDY)
    assert found.tokens == list(path)
    assert found.ended == (path[-1] in ends)
    assert [paths_of(tree)[row] for row in found.rows] == [path[:end] for end in range(len(path))]


def test_draft_probabilities_are_not_read():
    unsaid = TREE._replace(probabilities=[float("nan")] * 5)
    assert accept(unsaid, verified(7, 8, 8, 1, 4), sequence(), GREEDY).tokens == [7, 8, 4]


def test_nothing_is_emitted_after_an_end_token():
    result = verified(6, 8, 1, 3, 4)
    assert accept(TREE, result, sequence(6), GREEDY)[:3] == ([0], [6], True)
    assert accept(TREE, result, sequence(8), GREEDY)[:3] == ([0, 1], [6, 8], True)
    assert not accept(TREE, result, sequence(9), GREEDY).ended


def test_nothing_is_emitted_after_a_token_that_completes_the_grammar():
    class Complete(Picker):
        def complete(self, context):
            return context.path == [6]

    found = accept(TREE, verified(6, 8, 1, 3, 4), sequence(), Complete(sequence().request))
    assert found[:3] == ([0], [6], True)


def test_each_pick_is_made_for_its_own_position_and_path():
    seen = []

    class Watching(Picker):
        def __call__(self, logits, position, context):
            seen.append((position, [*context.decided, *context.path]))
            return super().__call__(logits, position, context)

    accept(TREE, verified(7, 8, 8, 1, 4), sequence(), Watching(sequence().request))
    assert seen == [(3, [2, 3, 5]), (4, [2, 3, 5, 7]), (5, [2, 3, 5, 7, 8])]  # three are decided
