"""The pick: greedy, temperature, top-k and top-p as Hugging Face has them; a pure function of
(logits, position, params).
"""

import warnings

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from firp.runtime.errors import FirpError
from firp.runtime.picking.pick import candidates, margin, pick, uniform
from firp.runtime.sampling import SamplingParams


def hugging_face_probabilities(logits, params):
    scores = torch.from_numpy(logits)[None].double()
    warpers = [TemperatureLogitsWarper(params.temperature)]
    warpers += [TopKLogitsWarper(params.top_k)] if params.top_k else []
    warpers += [TopPLogitsWarper(params.top_p)] if params.top_p < 1 else []
    for warper in warpers:
        scores = warper(None, scores)
    return scores.softmax(-1)[0].numpy()


@pytest.mark.parametrize("vocabulary", [5, 200, 5000])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.8),
        SamplingParams(temperature=1.3, top_k=7),
        SamplingParams(temperature=0.8, top_p=0.95),
        SamplingParams(temperature=2.0, top_p=0.3),
        SamplingParams(temperature=1.0, top_k=50, top_p=0.9),
        SamplingParams(temperature=0.7, top_k=100000, top_p=0.999),
    ],
)
def test_candidates_have_the_probabilities_of_hugging_face(vocabulary, params):
    rng = np.random.default_rng(vocabulary)
    for scale in (0.5, 3.0):
        logits = (rng.normal(size=vocabulary) * scale).astype(np.float32)
        ids, weights, count = candidates(logits, params)
        ours = np.zeros(vocabulary)
        ours[ids[:count]] = weights[:count] / weights[:count].sum()
        np.testing.assert_allclose(ours, hugging_face_probabilities(logits, params), atol=1e-9)


def test_draws_follow_the_distribution():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    params = SamplingParams(temperature=1.0, seed=3)
    counts = np.bincount([pick(logits, position, params) for position in range(20000)], minlength=4)
    expected = np.array([0.5, 0.3, 0.15, 0.05]) * 20000
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-squared, 3 degrees of freedom, p = 0.001


def test_greedy_takes_the_first_of_equals():
    assert pick(np.array([1, 3, 3, 2], np.float32), 9, SamplingParams()) == 1


def test_the_draw_depends_on_seed_and_position_alone():
    first = [uniform(5, position) for position in range(100)]
    np.random.default_rng().random(10)
    assert first == [uniform(5, position) for position in range(100)]
    assert len({*first, *(uniform(6, position) for position in range(100))}) == 200
    assert all(0 <= value < 1 for value in first)
    assert uniform(2**64 - 1, 2**40) != uniform(2**64 - 2, 2**40)


def test_margin_is_the_distance_to_another_pick():
    logits = np.array([2.0, 1.5, -1.0], np.float32)
    assert margin(logits, 0, SamplingParams()) == pytest.approx(0.5)
    params = SamplingParams(temperature=1.0, seed=1)
    bounds = np.cumsum(np.exp(logits) / np.exp(logits).sum())
    for position in range(50):
        draw = uniform(1, position)
        expected = int(np.searchsorted(bounds, draw))
        assert pick(logits, position, params) == expected
        edges = [abs(draw - bound) for bound in bounds[:-1]]
        assert margin(logits, position, params) == pytest.approx(
            min(edges[max(0, expected - 1) : expected + 1]), abs=1e-6
        )


def test_a_cut_is_not_near_a_token_that_may_not_be_picked():
    logits = np.array([0.0, -np.inf, -np.inf, 1.0])
    with np.errstate(all="raise"):
        for params in ({"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.9}):
            assert margin(logits, 0, SamplingParams(temperature=1.0, **params)) > 0
        assert margin(logits[1:], 0, SamplingParams(temperature=1.0, top_p=0.5)) == 1


def test_margin_counts_a_cut_only_where_it_would_change_the_pick():
    # 0.5 + 0.45 is just above top_p: a little less, and the third token would be kept, which moves
    # the intervals
    logits = np.log(np.array([0.5, 0.45, 0.05]))
    params, wide = (
        SamplingParams(temperature=1.0, top_p=0.949999),
        SamplingParams(temperature=1.0, top_p=0.99),
    )
    near = [margin(logits, position, params) < 2e-6 for position in range(400)]
    turned = [pick(logits, position, params) != pick(logits, position, wide) for position in range(400)]
    assert 5 < sum(near) < 100
    assert [is_near for is_near, is_turned in zip(near, turned, strict=True) if is_turned] == [True] * sum(
        turned
    )
    tied = np.log(np.array([0.4, 0.3, 0.3 - 1e-7]))
    margins = [margin(tied, position, SamplingParams(temperature=1.0, top_k=2)) for position in range(50)]
    assert min(margins) < 1e-6 < max(margins)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(value, temperature):
    logits = np.array([1.0, 2.0, value, 0.0], np.float32)
    with pytest.raises(FirpError, match="not finite"):
        pick(logits, 3, SamplingParams(temperature=temperature))


def sorted_candidates(logits, params):
    """Every candidate sorted, then cut: what `candidates` finds without sorting them all."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / params.temperature)
    ids = np.argsort(-weights, kind="stable")[: params.top_k or None]
    shares = weights[ids] / (weights[ids] if params.top_k else weights).sum()
    count = np.searchsorted(np.cumsum(shares), params.top_p) + 1 if params.top_p < 1 else len(ids)
    return ids[:count], shares[:count]


@pytest.mark.parametrize("scale", [0.01, 0.7, 3.0, 9.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 0.95), (0, 0.3), (0, 0.9995), (1, 1.0), (40, 1.0), (40, 0.8), (1999, 0.9)]
)
def test_what_is_not_sorted_changes_no_candidate(scale, top_k, top_p):
    """To the last bit, ties and impossible tokens included."""
    params = SamplingParams(temperature=0.8, top_k=top_k, top_p=top_p)
    rng = np.random.default_rng(7)
    logits = (rng.normal(size=2000) * scale).astype(np.float32)
    impossible = np.where(rng.random(2000) < 0.2, np.float32(-np.inf), logits)
    for row in (logits, np.round(logits, 1), impossible):
        ids, weights, count = candidates(row, params)
        expected_ids, expected = sorted_candidates(row, params)
        assert ids[:count].tolist() == expected_ids.tolist()
        assert weights[:count].tolist() == expected.tolist()
        assert len(ids) > count or count == len(row) or top_p > 0.999


@pytest.mark.parametrize("cut", [{}, {"top_k": 3}, {"top_p": 0.5}])
def test_a_tiny_temperature_is_greedy_without_a_warning(cut):
    logits = np.random.default_rng(0).normal(size=50).astype(np.float32)
    with warnings.catch_warnings(action="error"):
        assert pick(logits, 3, SamplingParams(temperature=1e-320, **cut)) == logits.argmax()
