"""Prompt lookup: what stood after the last tokens before, as a tree, believed as far as it proved true."""

import pytest

from firp.runtime.drafters.lookup import MAX_MATCH, LookupDrafter, MatchRates, prior_rate
from firp.runtime.passes.request import Request
from firp.runtime.passes.sequence import Sequence
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig


def sequence_of(tokens, prompt_tokens=1):
    request = Request(tuple(tokens[:prompt_tokens]), SamplingParams(500), frozenset(), 500)
    sequence = Sequence(request, 1000)
    sequence.extend(tokens[prompt_tokens:])
    return sequence


def paths(tree):
    found = {0: ()}
    for node in range(1, len(tree.tokens)):
        found[node] = (*found[tree.parents[node]], tree.tokens[node])
    return set(found.values()) - {()}


def draft(tokens, rows=8, least=0.0, max_depth=20):
    return LookupDrafter(TreeConfig.lookup(rows, least)).draft(sequence_of(tokens), max_depth)


def test_what_followed_is_proposed_as_a_chain():
    tree = draft([7, 1, 2, 3, 4, 5, 9, 1, 2], rows=4)
    assert tree.tokens == [2, 3, 4, 5]
    assert tree.parents == [-1, 0, 1, 2]


def test_places_that_go_on_differently_make_branches():
    tree = draft([1, 2, 3, 8, 9, 1, 2, 4, 8, 7, 1, 2], rows=16)
    assert {(3,), (4,), (3, 8), (4, 8)} <= paths(tree)


def test_the_longest_match_decides():
    tree = draft([5, 1, 2, 7, 0, 6, 2, 8, 0, 5, 1, 2], rows=2)
    assert tree.tokens == [2, 7]


def test_text_without_repetition_is_decoded_plainly():
    assert draft(list(range(30))).tokens == [29]


def test_no_node_is_deeper_than_allowed():
    looping = [1, 2, 3] * 8
    assert max(draft(looping, rows=16, max_depth=2).depths) == 2
    assert draft(looping, rows=16, max_depth=0).tokens == [3]


def test_a_child_is_never_more_probable_than_its_parent():
    tree = draft([1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2], rows=16)
    for node in range(1, len(tree.tokens)):
        assert tree.probabilities[node] <= tree.probabilities[tree.parents[node]]


def test_improbable_drafts_are_left_out():
    tokens = [1, 2, 3, 8, 1, 2, 4, 8, 1, 2]
    everything = draft(tokens, rows=16)
    least = sorted(everything.probabilities)[3]
    kept = draft(tokens, rows=16, least=least)
    assert len(kept.tokens) < len(everything.tokens)
    assert min(kept.probabilities) >= least


def test_matches_that_lead_nowhere_are_believed_less_and_less():
    """A token is followed by another one each time: after a while nothing is proposed any more."""
    drafter, sizes = LookupDrafter(TreeConfig.lookup(4, least=0.1)), []
    sequence = sequence_of([1])
    for fresh in range(100, 160):
        sizes.append(len(drafter.draft(sequence, 8).tokens))
        sequence.extend([fresh, 1])
    assert max(sizes[:3]) > 1
    assert sizes[-1] == 1


def test_rates_begin_with_the_prior_and_follow_what_is_counted():
    rates = MatchRates()
    assert rates.of(3) == pytest.approx(prior_rate(3))
    for _ in range(200):
        rates.count(3, True)
    assert rates.of(3) > 0.97
    assert rates.of(4) == pytest.approx(prior_rate(4))


def test_longer_matches_are_believed_more():
    rates = [prior_rate(length) for length in range(1, MAX_MATCH + 1)]
    assert rates == sorted(rates)
    assert 0 < rates[0] < rates[-1]
    assert rates[-1] < 1


def test_a_drafter_that_saw_the_sequence_grow_knows_what_a_new_one_finds():
    tokens = [3, 1, 2, 3, 1, 2, 4, 3, 1]
    grown, sequence = LookupDrafter(TreeConfig.lookup(8)), sequence_of(tokens[:4])
    for token in tokens[4:]:
        grown.draft(sequence, 8)
        sequence.extend([token])
    assert paths(grown.draft(sequence, 8)) == paths(draft(tokens))
