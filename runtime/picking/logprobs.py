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
    row = logits.astype(np.float64)
    row -= row.max()
    row -= np.log(np.exp(row).sum())
    top = min(top, len(row))
    best: list[tuple[int, float]] = []
    if top:
        least = np.partition(row, len(row) - top)[len(row) - top]
        ids = np.flatnonzero(row >= least)
        ids = ids[np.argsort(-row[ids], kind="stable")][:top]
        best = [(int(token), float(row[token])) for token in ids]
    return TokenLogprob(int(token), float(row[token]), best)
