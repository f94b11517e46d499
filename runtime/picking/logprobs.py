"""Logprobs: how likely a token was, and the likeliest ones beside it.

In: logits [V] of a row as the model gave them, before any processor. Out: a `TokenLogprob`.
"""

from typing import NamedTuple

import numpy as np


class TokenLogprob(NamedTuple):
    """A token and the natural logarithm of its probability in the model's own distribution."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]  # the likeliest tokens with theirs, best first, as many as were asked for


def token_logprob(logits: np.ndarray, token: int, top: int) -> TokenLogprob:
    """The logprob of a token of this row, and the `top` best; among equals the lower id comes first."""
    most = logits.max()
    total = float(most) + float(np.log(np.exp(logits - most).sum(dtype=np.float64)))
    top = min(top, len(logits))
    best: list[tuple[int, float]] = []
    if top:
        least = np.partition(logits, len(logits) - top)[len(logits) - top]
        ids = np.flatnonzero(logits >= least)
        ids = ids[np.argsort(-logits[ids], kind="stable")][:top]
        best = [(int(token), float(logits[token]) - total) for token in ids]
    return TokenLogprob(int(token), float(logits[token]) - total, best)
