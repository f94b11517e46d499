"""The pick: which token a row of logits becomes. A pure function of (logits row, absolute position,
params).

In: logits [V] of one row and the position of the token to pick. Out: a token id, and how far the
pick was from another one. The draw comes from a counter-based generator keyed by (seed, position),
so plain and drafted decoding, whatever their trees, pick the same tokens: losslessness is an
equality test (method.md, "Lossless, at every temperature").
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from firp.runtime.arguments import integer, real, truth
from firp.runtime.errors import FirpError


@dataclass(frozen=True)
class SamplingParams:
    """Rules by which tokens are picked and a sequence ends. Defaults: greedy, 128 new tokens."""

    max_new_tokens: int = 128
    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # keep the k best candidates; 0: all
    top_p: float = 1.0  # keep the smallest set of best candidates with at least this probability
    seed: int = 0
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    ignore_eos: bool = False  # go on past the end-of-sequence token (for measurements)

    def __post_init__(self):
        for name, kind, good, expected in _PARAMS:
            value = kind(getattr(self, name))
            if value is None or not good(value):
                raise FirpError(f"bad {name}", got=f"{getattr(self, name)!r:.100}", expected=expected)
            object.__setattr__(self, name, value)  # numpy's numbers wrap around, Python's do not


def _texts(value: Any) -> tuple[str, ...] | None:
    texts = tuple(value) if isinstance(value, tuple | list) else None
    return texts if texts is not None and all(isinstance(text, str) and text for text in texts) else None


MOST_STOP_CHARACTERS = 10_000  # of all stop strings together: each token's text is compared with them
_PARAMS = (  # field, conversion (None: of the wrong type), check, what is expected
    ("max_new_tokens", integer, lambda value: value >= 1, "a whole number, at least 1"),
    ("temperature", real, lambda value: 0 <= value < float("inf"), "0 (greedy) or more"),
    ("top_k", integer, lambda value: value >= 0, "a whole number, 0 (all) or more"),
    ("top_p", real, lambda value: 0 < value <= 1, "more than 0 and at most 1"),
    ("seed", integer, lambda value: 0 <= value < 2**64, "a whole number in [0, 2^64)"),
    (
        "stop",
        _texts,
        lambda value: sum(map(len, value)) <= MOST_STOP_CHARACTERS,
        f"a tuple of non-empty strings, at most {MOST_STOP_CHARACTERS} characters in all",
    ),
    ("ignore_eos", truth, lambda value: True, "True or False"),
)


_LEAST_WEIGHTS = (2**-5, 2**-8, 2**-12, 2**-18, 0.0)  # of the best one; sorted are those above the first


class Ranked(NamedTuple):
    """Candidates, and how many of them may be drawn: the first `count`. Where top-k or top-p cut,
    they are best first and one or more follow the cut; where nothing is cut, they are the whole
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
    best = int(logits.argmax())
    if not np.isfinite(logits[best]):  # argmax finds NaN first
        raise FirpError(
            "the model's logits are not finite",
            got=logits[best],
            fix="export it with --dtype float32 or bfloat16",
        )
    if params.temperature == 0:
        return best
    ids, weights, count = candidates(logits, params)
    return _draw(ids[:count], weights[:count], uniform(params.seed, position)).token


class Picker:
    """Picks the tokens of one request. needs_logits: whether it reads logits, or the token that a
    graph lists first will do.
    """

    def __init__(self, params: SamplingParams):
        self.params = params
        self.needs_logits = params.temperature > 0

    def __call__(self, logits: np.ndarray, position: int) -> int:
        """The token at `position`, given the logits [V] of the row before it."""
        return pick(logits, position, self.params)


def margin(logits: np.ndarray, position: int, params: SamplingParams) -> float:
    """Distance of the pick from another: the gap of the two best logits (greedy); the distance, in
    probability, of the draw from the end of its interval, or of top-k or top-p from a cut that
    would change the pick. Rounding can turn a tiny margin.
    """
    if params.temperature == 0:
        second, best = np.partition(logits, -2)[-2:]
        return float(best - second)
    ids, weights, count = candidates(logits, params)
    uniform_draw = uniform(params.seed, position)
    drawn = _draw(ids[:count], weights[:count], uniform_draw)
    nearest = drawn.distance
    for other, distance in _other_cuts(weights, count, params.top_p):
        if _draw(ids[other], weights[other], uniform_draw).token != drawn.token:
            nearest = min(nearest, distance)
    return nearest


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments (Philox 4x64, key = seed,
    counter = position).
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, position, 0, 0])).random()


def candidates(logits: np.ndarray, params: SamplingParams) -> Ranked:
    """Temperature, then top-k, then top-p, as the Hugging Face logits processors do it, in
    float64.
    """
    weights = logits.astype(np.float64)  # then in place: fresh pages cost more than the arithmetic
    weights -= weights.max()
    weights /= params.temperature
    np.exp(weights, out=weights)
    top_k = params.top_k if 0 < params.top_k < len(weights) else len(weights)
    total = weights.sum()
    if top_k == len(weights) and params.top_p == 1:
        weights /= total
        return Ranked(np.arange(len(weights)), weights, len(weights))
    if top_k < len(weights):
        ids = _best_first(weights, lambda some: len(some) > top_k)[: top_k + 1]
        total = weights[ids[:top_k]].sum()
    else:
        needed = (params.top_p + 1e-3) * total  # so that some follow the cut, whatever rounding does
        ids = _best_first(weights, lambda some: some.sum() - some.min() > needed)
    ranked = weights[ids] / total
    if params.top_p == 1:
        return Ranked(ids, ranked, top_k)
    reached = np.cumsum(ranked[:top_k])
    count = int(np.searchsorted(reached, params.top_p, side="left")) + 1
    return Ranked(ids, ranked, min(count, len(reached)))


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


def _other_cuts(weights: np.ndarray, count: int, top_p: float) -> list[tuple[np.ndarray, float]]:
    """Sets that another rounding could keep instead of the first `count`, and how far, in
    probability, each is.
    """
    if count == len(weights):
        return []
    kept = np.arange(count)
    swapped = np.append(kept[:-1], count)
    others = [(swapped, float(weights[count - 1] - weights[count]))]
    if top_p < 1:
        reached = np.cumsum(weights[:count])
        others.append((np.arange(count + 1), abs(float(reached[-1]) - top_p)))
        if count > 1:
            others.append((kept[:-1], abs(float(reached[-2]) - top_p)))
    return others
