"""The pick: which token a row of logits becomes. A pure function of (logits row, absolute position,
params).

In: logits [V] of one row and the position of the token to pick. Out: a token id, and how far the
pick was from another one. The draw comes from a counter-based generator keyed by (seed, position),
so plain and drafted decoding, whatever their trees, pick the same tokens: losslessness is an
equality test (method.md, "Lossless, at every temperature").
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from firp.runtime.errors import FirpError
from firp.runtime.sampling import SamplingParams

_LEAST_WEIGHTS = (2**-5, 2**-8, 2**-12, 2**-18, 0.0)  # of the best one; sorted are those above the first


class Ranked(NamedTuple):
    """Candidates, and how many of them may be drawn: the first `count`. Where top-k, top-p or min-p
    cut, they are best first and one or more follow the cut; where nothing is cut, they are the whole
    vocabulary in order.
    """

    ids: np.ndarray  # [n] i64
    weights: np.ndarray  # [n] f64 probabilities, of those that top-k kept
    count: int


def pick(logits: np.ndarray, position: int, params: SamplingParams) -> int:
    """The token at `position` (index in the whole sequence), given the logits [V] of the row before
    it.

    Raises FirpError when the logits are not finite: the model overflowed, and no token would mean
    anything.
    """
    best = check_finite(logits)
    if params.temperature == 0:
        return best
    ids, weights, count = candidates(logits, params)
    return _draw(ids[:count], weights[:count], uniform(params.seed, position)).token


def check_finite(logits: np.ndarray) -> int:
    """The best token of a row. Raises FirpError when its logit is not finite."""
    best = int(logits.argmax())
    if not np.isfinite(logits[best]):  # argmax finds NaN first
        raise FirpError(
            "the model's logits are not finite",
            got=logits[best],
            fix="export it with --dtype float32 or bfloat16",
        )
    return best


def margin(logits: np.ndarray, position: int, params: SamplingParams) -> float:
    """Distance of the pick from another: the gap of the two best logits (greedy); the distance, in
    probability, of the draw from the end of its interval, or of top-k, top-p or min-p from a cut that
    would change the pick. Rounding can turn a tiny margin.
    """
    if params.temperature == 0:
        second, best = np.partition(logits, -2)[-2:]
        return float(best - second)
    ids, weights, count = candidates(logits, params)
    uniform_draw = uniform(params.seed, position)
    drawn = _draw(ids[:count], weights[:count], uniform_draw)
    nearest = drawn.distance
    for other, distance in _other_cuts(weights, count, params):
        if _draw(ids[other], weights[other], uniform_draw).token != drawn.token:
            nearest = min(nearest, distance)
    return nearest


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments (Philox 4x64, key = seed,
    counter = position).
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, position, 0, 0])).random()


def candidates(logits: np.ndarray, params: SamplingParams) -> Ranked:
    """Temperature, then top-k, top-p and min-p, as the Hugging Face logits processors do it, in
    float64.
    """
    weights = logits.astype(np.float64)  # then in place: fresh pages cost more than the arithmetic
    weights -= weights.max()
    with np.errstate(over="ignore"):  # of a tiny temperature: what is not best is as good as impossible
        weights /= params.temperature
    np.exp(weights, out=weights)
    top_k = params.top_k if 0 < params.top_k < len(weights) else len(weights)
    total = weights.sum()
    if top_k == len(weights) and params.top_p == 1 and params.min_p == 0:
        weights /= total
        return Ranked(np.arange(len(weights)), weights, len(weights))
    if top_k < len(weights):
        ids = _best_first(weights, lambda some: len(some) > top_k)[: top_k + 1]
        total = weights[ids[:top_k]].sum()
    elif params.top_p < 1:
        needed = (params.top_p + 1e-3) * total  # so that some follow the cut, whatever rounding does
        ids = _best_first(weights, lambda some: some.sum() - some.min() > needed)
    else:
        ids = _best_first(weights, lambda some: some.min() < params.min_p)
    ranked = weights[ids] / total
    count = min(top_k, len(ids))
    if params.top_p < 1:
        reached = np.cumsum(ranked[:count])
        count = min(int(np.searchsorted(reached, params.top_p, side="left")) + 1, count)
    if params.min_p:
        count = min(count, int((ranked >= params.min_p * ranked[0]).sum()))
    return Ranked(ids, ranked, count)


def _best_first(weights: np.ndarray, enough: Callable[[np.ndarray], bool]) -> np.ndarray:
    """Indices of the largest, as many as are enough and seldom all, since sorting takes longest:
    best first, the lower index first among equals. The largest of all is 1.
    """
    for least in _LEAST_WEIGHTS:
        ids = np.flatnonzero(weights >= least)
        if enough(weights[ids]):
            break
    return ids[np.argsort(-weights[ids], kind="stable")]


class _Draw(NamedTuple):
    token: int
    distance: float  # of the draw from the nearest interval of another token, in probability


def _draw(ids: np.ndarray, weights: np.ndarray, draw: float) -> _Draw:
    """Draw from intervals that lie in order of token id, so that two candidates of nearly equal
    weight never swap places.
    """
    in_order = ids[-1] == len(ids) - 1 and bool((ids[1:] > ids[:-1]).all())
    order = np.arange(len(ids)) if in_order else np.argsort(ids)
    bounds = np.cumsum(weights[order])
    bounds /= bounds[-1]
    bounds[-1] = 1.0
    index = int(np.searchsorted(bounds, draw, side="right"))
    below = draw - bounds[index - 1] if index else 1.0
    above = bounds[index] - draw if index + 1 < len(bounds) else 1.0
    return _Draw(int(ids[order[index]]), float(min(below, above)))


def _other_cuts(weights: np.ndarray, count: int, params: SamplingParams) -> list[tuple[np.ndarray, float]]:
    """Sets that another rounding could keep instead of the first `count`, and how far, in
    probability, each is.
    """
    kept = np.arange(count)
    others = []
    follows = count < len(weights) and weights[count] > 0  # one that may be picked at all
    if follows:
        swapped = np.append(kept[:-1], count)
        others.append((swapped, float(weights[count - 1] - weights[count])))
        if params.top_p < 1:
            reached = np.cumsum(weights[:count])
            others.append((np.arange(count + 1), abs(float(reached[-1]) - params.top_p)))
            if count > 1:
                others.append((kept[:-1], abs(float(reached[-2]) - params.top_p)))
    if params.min_p:
        least = params.min_p * float(weights[0])
        if follows:
            others.append((np.arange(count + 1), abs(float(weights[count]) - least)))
        if count > 1:
            others.append((kept[:-1], abs(float(weights[count - 1]) - least)))
    return others
