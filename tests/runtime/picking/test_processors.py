"""Processors change rows as Hugging Face's do, whatever is decided and whatever only walked."""

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from firp.runtime.picking.context import Context
from firp.runtime.picking.pick import candidates, margin, pick
from firp.runtime.picking.processors import Processors
from firp.runtime.sampling import SamplingParams

VOCABULARY = 60
PROMPT = [3, 4, 4, 5, 6]
OUTPUT = [5, 7, 7, 7, 8, 3, 9]


def rows(count=6):
    return np.random.default_rng(0).normal(size=(count, VOCABULARY)).astype(np.float32) * 3


def contexts():
    """Every cut of the output into decided tokens and a path, in the order in which a loop meets them."""
    for decided in range(0, len(OUTPUT), 2):
        tokens = [*PROMPT, *OUTPUT[:decided]]
        yield tokens, [Context(tokens, OUTPUT[decided:end]) for end in range(decided, len(OUTPUT))]


def processed_by(params, ends=frozenset()):
    """Rows and contexts, with what one instance makes of them, again and again."""
    growing = list(PROMPT)
    processors = Processors(params, len(PROMPT), frozenset(ends))
    for tokens, walked in contexts():
        growing += tokens[len(growing) :]
        for context in walked:
            for row in rows(2):
                before = row.copy()
                found = processors(row, Context(growing, context.path))
                assert row.tolist() == before.tolist()  # the logits of the pass stay as they are
                yield row, [*growing, *context.path], found


def theirs(processors, tokens, row):
    return processors(torch.tensor([tokens]), torch.from_numpy(row)[None].clone())[0].numpy()


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty_is_that_of_hugging_face(penalty):
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    for row, tokens, found in processed_by(SamplingParams(repetition_penalty=penalty)):
        np.testing.assert_array_equal(found, theirs(processor, tokens, row))


def test_presence_and_frequency_count_what_was_generated():
    params = SamplingParams(presence_penalty=0.7, frequency_penalty=-0.4)
    for row, tokens, found in processed_by(params):
        times = np.bincount(tokens[len(PROMPT) :], minlength=VOCABULARY)
        np.testing.assert_allclose(found, row + 0.4 * times - 0.7 * (times > 0), atol=1e-6)


def test_bias_is_added_before_penalties():
    bias = {3: 2.5, 7: -100, 11: 100}
    pair = [SequenceBiasLogitsProcessor([[[token], float(value)] for token, value in bias.items()])]
    pair.append(RepetitionPenaltyLogitsProcessor(1.4))
    params = SamplingParams(logit_bias=bias, repetition_penalty=1.4)
    for row, tokens, found in processed_by(params):
        np.testing.assert_allclose(found, theirs(LogitsProcessorList(pair), tokens, row), atol=1e-5)


def test_allowed_and_banned_tokens():
    banned = SuppressTokensLogitsProcessor([5, 40])
    for row, tokens, found in processed_by(SamplingParams(banned_token_ids=[5, 40])):
        np.testing.assert_array_equal(found, theirs(banned, tokens, row))
    params = SamplingParams(allowed_token_ids=(2, 5, 9), banned_token_ids=(9,))
    for row, _, found in processed_by(params):
        assert np.flatnonzero(np.isfinite(found)).tolist() == [2, 5]
        assert found[[2, 5]].tolist() == row[[2, 5]].tolist()


def test_no_end_token_before_min_tokens():
    processor = MinNewTokensLengthLogitsProcessor(len(PROMPT), 4, [1, 30])
    for row, tokens, found in processed_by(SamplingParams(min_tokens=4), ends={1, 30}):
        np.testing.assert_array_equal(found, theirs(processor, tokens, row))


def test_another_sequence_is_counted_anew():
    params = SamplingParams(frequency_penalty=1.0)
    processors = Processors(params, 2, frozenset())
    (row,) = rows(1)
    first = processors(row, Context([1, 2, 3], [4]))
    assert processors(row, Context([1, 2, 5, 6], [])).tolist() != first.tolist()
    assert processors(row, Context([1, 2, 3], [4])).tolist() == first.tolist()


def test_nothing_asked_for_changes_nothing():
    (row,) = rows(1)
    params = SamplingParams(temperature=0.5, top_p=0.9, min_p=0.1, stop_token_ids=[4])
    assert Processors(params, 2, frozenset({4}))(row, Context([1, 2], [])) is row


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.8, min_p=0.05),
        SamplingParams(temperature=1.5, min_p=0.3, top_k=5),
        SamplingParams(temperature=1.0, min_p=0.02, top_p=0.9),
        SamplingParams(temperature=1.0, min_p=1e-9),
        SamplingParams(temperature=1.0, min_p=1.0),
    ],
)
def test_min_p_keeps_what_hugging_face_keeps(params):
    warpers = [TemperatureLogitsWarper(params.temperature)]
    warpers += [TopKLogitsWarper(params.top_k)] if params.top_k else []
    warpers += [TopPLogitsWarper(params.top_p)] if params.top_p < 1 else []
    warpers += [MinPLogitsWarper(params.min_p)]
    for row in rows(20):
        scores = LogitsProcessorList(warpers)(None, torch.from_numpy(row)[None].double())
        ids, weights, count = candidates(row, params)
        ours = np.zeros(VOCABULARY)
        ours[ids[:count]] = weights[:count] / weights[:count].sum()
        np.testing.assert_allclose(ours, scores.softmax(-1)[0].numpy(), atol=1e-9)


def test_margin_sees_the_cut_of_min_p():
    logits = np.log(np.array([0.5, 0.3, 0.1 + 1e-7, 0.05]))
    params = SamplingParams(temperature=1.0, min_p=0.2)
    turned = [
        pick(logits, position, params)
        != pick(logits, position, SamplingParams(temperature=1.0, min_p=0.2 + 1e-6))
        for position in range(300)
    ]
    near = [margin(logits, position, params) < 1e-6 for position in range(300)]
    assert 5 < sum(turned) < 200
    assert all(is_near for is_near, is_turned in zip(near, turned, strict=True) if is_turned)
