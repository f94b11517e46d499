"""Guesses of one draft source, and their ranking given the token that each follows.

In: the top-k lists of K pseudo rows. Out: `Ranking`, each offset's guesses in order of probability
for every guess of the offset before. The pseudo rows guess their offsets independently of each
other; `PathCorrection` pairs them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Guesses(NamedTuple):
    """Guesses of one source's pseudo rows: row j guesses the token j + 1 after the bonus token."""

    top_ids: np.ndarray  # [K, k] i64, best first
    top_logprobs: np.ndarray  # [K, k] f32


class Ranking:
    """Order of guesses: for each offset, and each guess of the offset before. Rows are made when they are
    asked for: a chain takes one for each offset.
    """

    def __init__(self, probabilities: Callable[[int, int], np.ndarray]):
        """probabilities: of the guesses at a depth (1 to K) that follow the guess in a place before it,
        [k] f32.
        """
        self._of = probabilities
        # places and probabilities, best first, of what was asked for: calibration keeps one of these for
        # every token of its text
        self._rows: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def children(self, depth: int, place: int) -> tuple[list[int], list[float]]:
        """Places and probabilities, best first, of the guesses at `depth` (1 to K) that follow the
        guess in `place` before it.
        """
        row = self._rows.get((depth, place))
        if row is None:
            probabilities = self._of(depth, place)
            order = np.argsort(-probabilities, kind="stable")
            row = self._rows[depth, place] = order.astype(np.uint16), probabilities[order]
        order, probabilities = row
        return order.tolist(), probabilities.tolist()


def independent(guesses: Guesses) -> Ranking:
    """Rank guesses as the pseudo rows say, whatever a guess follows."""
    return Ranking(lambda depth, place: np.exp(guesses.top_logprobs[depth - 1]))
