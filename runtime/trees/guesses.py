"""Guesses of one draft source, and their ranking given the token that each follows.

In: the top-k lists of K pseudo rows. Out: `Ranking`, each offset's guesses in order of probability
for every guess of the offset before. The pseudo rows guess their offsets independently of each
other; `PathCorrection` pairs them.
"""

from typing import NamedTuple

import numpy as np


class Guesses(NamedTuple):
    """Guesses of one source's pseudo rows: row j guesses the token j + 1 after the bonus token."""

    top_ids: np.ndarray  # [K, k] i64, best first
    top_logprobs: np.ndarray  # [K, k] f32


class Ranking(NamedTuple):
    """Order of guesses: for each offset, one row for each guess of the offset before (one row at
    offset 1, or where nothing is corrected).
    """

    order: list[np.ndarray]  # [1 or k, k] int: places in that offset's guesses, best first
    probabilities: list[np.ndarray]  # [1 or k, k] f32, by place

    def children(self, depth: int, place: int) -> tuple[list[int], list[float]]:
        """Places and probabilities, best first, of the guesses at `depth` (1 to K) that follow the
        guess in `place` before it.
        """
        row = place % len(self.order[depth - 1])  # one row serves every parent where nothing is corrected
        order = self.order[depth - 1][row]
        return order.tolist(), self.probabilities[depth - 1][row, order].tolist()


def independent(guesses: Guesses) -> Ranking:
    """Rank guesses as the pseudo rows say, whatever a guess follows."""
    order = np.arange(guesses.top_ids.shape[1])[None]
    return Ranking([order] * len(guesses.top_ids), list(np.exp(guesses.top_logprobs)[:, None]))
