"""The pick: which token a row of logits becomes. A pure function of (logits row, absolute position, params).

In: logits [V] of one row and the position of the token to pick. Out: a token id, and how far the pick was from another one.
The draw comes from a counter-based generator keyed by (seed, position), so plain and drafted decoding, whatever their trees,
pick the same tokens: losslessness is an equality test (method.md, "Lossless, at every temperature").
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from firp.runtime.errors import FirpError


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are picked and when a sequence ends. Defaults: greedy, 128 new tokens."""

    max_new_tokens: int = 128
    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # keep the k best candidates; 0: all
    top_p: float = 1.0  # keep the smallest set of best candidates with at least this probability
    seed: int = 0
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    ignore_eos: bool = False  # go on past the end-of-sequence token (for measurements)

    def __post_init__(self):
        limits = (
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (all) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("seed", self.seed, 0 <= self.seed < 2**64, "in [0, 2^64)"),
            ("stop", self.stop, isinstance(self.stop, tuple) and all(self.stop), "a tuple of non-empty strings"),
        )
        for name, value, good, expected in limits:
            if not good:
                raise FirpError(f"bad {name}", got=repr(value), expected=expected)


class Candidates(NamedTuple):
    """What may be drawn: token ids in ascending order, and where each one's interval of [0, 1) ends."""

    ids: np.ndarray  # [n] i64
    bounds: np.ndarray  # [n] f64, the last is 1
    cut_margin: float  # how far, in probability, top-k or top-p is from keeping another set


def pick(logits: np.ndarray, position: int, params: SamplingParams) -> int:
    """The token at `position` (index in the whole sequence), given the logits [V] of the row before it."""
    if params.temperature == 0:
        return int(logits.argmax())
    drawn = candidates(logits, params)
    return int(drawn.ids[np.searchsorted(drawn.bounds, uniform(params.seed, position), side="right")])


def margin(logits: np.ndarray, position: int, params: SamplingParams) -> float:
    """How near the pick was to another: the gap of the two best logits (greedy), or the distance of the draw from the end
    of its interval, or of the candidate set from another set (sampled). Rounding can turn a pick whose margin is tiny.
    """
    if params.temperature == 0:
        second, best = np.partition(logits, -2)[-2:]
        return float(best - second)
    drawn = candidates(logits, params)
    draw = uniform(params.seed, position)
    edges = np.concatenate([[0.0], drawn.bounds])
    inner = edges[1:-1]  # 0 and 1 are no boundary between two tokens
    return float(min(np.abs(inner - draw).min(initial=1.0), drawn.cut_margin))


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments (Philox 4x64, key = seed, counter = position)."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, position, 0, 0])).random()


def candidates(logits: np.ndarray, params: SamplingParams) -> Candidates:
    """Temperature, then top-k, then top-p, as the Hugging Face logits processors do it; intervals in order of token id.

    Ascending ids keep a near tie between two candidates from swapping their intervals. Rows are computed in float64.
    """
    scaled = logits.astype(np.float64)
    scaled = (scaled - scaled.max()) / params.temperature
    ids, cut_margin = np.arange(len(scaled)), 1.0
    if 0 < params.top_k < len(scaled):
        order = np.argpartition(-scaled, params.top_k)[: params.top_k + 1]
        order = order[np.lexsort((order, -scaled[order]))]
        weights = np.exp(scaled[order])
        cut_margin = float((weights[-2] - weights[-1]) / np.exp(scaled).sum())
        ids = np.sort(order[:-1])
    weights = np.exp(scaled[ids])
    weights /= weights.sum()
    if params.top_p < 1:
        kept, top_p_margin = _nucleus(weights, params.top_p)
        ids, weights, cut_margin = ids[kept], weights[kept] / weights[kept].sum(), min(cut_margin, top_p_margin)
    bounds = np.cumsum(weights)
    bounds[-1] = 1.0
    return Candidates(ids, bounds, cut_margin)


def _nucleus(weights: np.ndarray, top_p: float) -> tuple[np.ndarray, float]:
    """The smallest set of the largest weights that sums to top_p or more, ascending, and the distance to another set."""
    count = min(64, len(weights))
    while True:  # sort only as many of the largest as are needed
        order = np.argpartition(-weights, count - 1)[:count]
        order = order[np.lexsort((order, -weights[order]))]
        total = np.cumsum(weights[order])
        if total[-1] >= top_p + 1e-3 or count == len(weights):
            break
        count = min(count * 8, len(weights))
    size = min(int(np.searchsorted(total, top_p, side="left")) + 1, len(order))
    distance = float(np.abs(total - top_p).min())
    if size < len(order):
        distance = min(distance, float(weights[order[size - 1]] - weights[order[size]]))
    return np.sort(order[:size]), distance
