"""A request is checked once; its sequence knows how far it may go."""

import pytest

from firp.runtime.errors import PromptError
from firp.runtime.passes.request import Needs, Request
from firp.runtime.passes.sequence import Sequence
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig


def request(prompt, new_tokens=10, context=64, ends=frozenset()):
    return Request.checked(prompt, SamplingParams(new_tokens), ends, vocab_size=100, context=context)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "empty prompt"),
        ([100], "out of range"),
        ([-1], "out of range"),
        ([None], "out of range"),
        ([5] * 64, "longer than the context"),
        ([None] * 64, "longer than the context"),  # said before any of them is looked at
    ],
)
def test_prompts_that_cannot_be_decoded(prompt, message):
    with pytest.raises(PromptError, match=message):
        request(prompt)


def test_no_more_is_emitted_than_the_context_holds():
    assert request([5] * 60, new_tokens=10).max_tokens == 4
    assert request([5] * 10, new_tokens=10).max_tokens == 10


def test_needs_cover_the_prompt_and_the_tree():
    short = request([5] * 10).needs(TreeConfig("dynamic", 8, 2), num_predictors=3)
    assert short == Needs(capacity=20, rows=14, tree_rows=14)
    assert request([5] * 10).needs(None, 3) == Needs(capacity=20, rows=13, tree_rows=1)
    assert request([5] * 10).needs(TreeConfig.lookup(8), 0) == Needs(capacity=20, rows=10, tree_rows=8)


def test_a_sequence_ends_with_its_limit():
    sequence = Sequence(request([5, 6], new_tokens=3), capacity=64)
    assert sequence.finish_reason is None
    sequence.extend([1, 2])
    assert (sequence.root, sequence.cached, sequence.remaining) == (2, 3, 1)
    sequence.extend([3])
    assert sequence.finish_reason == "length"


def test_a_sequence_ends_when_acceptance_says_so():
    sequence = Sequence(request([5, 6], ends=frozenset({7})), capacity=64)
    sequence.extend([1, 7], ended=True)
    assert sequence.finish_reason == "stop"


def test_an_end_in_the_prompt_ends_nothing():
    assert Sequence(request([5, 7], ends=frozenset({7})), capacity=64).finish_reason is None


def test_a_small_session_ends_a_sequence_earlier():
    sequence = Sequence(request([5, 6]), capacity=4)
    sequence.extend([1, 2, 3])
    assert sequence.finish_reason == "length"


def test_a_prompt_larger_than_the_session_is_refused():
    with pytest.raises(PromptError, match="longer than the session"):
        Sequence(request([5] * 9), capacity=8)
