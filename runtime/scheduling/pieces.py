"""How large a piece of a prompt may be, for the time that others can wait.

In: pieces as they were computed, with what each took. Out: the size of the next one. A line through the
last ones tells: what a piece takes in any case, and what each token adds; both grow with the slots that
they attend over, so those over nearly as many count most.
"""

from collections import deque
from functools import partial

LEAST = 4  # tokens of a piece: for fewer, reading all weights is not worth while
FIRST = 8  # tokens of the first piece of all
KEPT = 48  # pieces
FREE = 1024  # slots over which attention takes less time than everything else in a piece
NEAR = 256  # slots more or less, at which a piece counts half
AGED = 0.95  # of what a piece counted before the one after it
DOUBT = 0.05  # of all weights, for the guess that a quarter of the time does not depend on the size
LEAST_SLOPE = 0.125  # of the usual time for each token: what larger pieces take longer at least
GROWTH = 2.0  # times the largest of the pieces, at most: beyond them nothing is known


class Pieces:
    """The last pieces: tokens, slots and milliseconds of each."""

    def __init__(self):
        self._last: deque[tuple[int, int, float]] = deque(maxlen=KEPT)

    def note(self, tokens: int, slots: int, ms: float) -> None:
        """Take note of a piece: milliseconds of its pass, over so many slots."""
        self._last.appendleft((tokens, slots, ms))

    def most(self, slots: int, ms: float) -> int:
        """Tokens of the largest piece over so many slots that should take no longer; 0: there is time for
        too few.
        """
        if not self._last:
            return FIRST
        weights = [AGED**age / (1 + abs(seen - slots) / NEAR) for age, (_, seen, _) in enumerate(self._last)]
        times = [took * (FREE + slots) / (FREE + seen) for _, seen, took in self._last]
        sizes = [float(tokens) for tokens, _, _ in self._last]
        average = partial(_average, weights)
        size, usual = average(sizes), average(times)
        # all of them, and a guess: no size but 0 may have been tried yet
        spread = average([(one - size) ** 2 for one in sizes]) + DOUBT * size**2
        rise = average([(one - size) * took for one, took in zip(sizes, times, strict=True)])
        by_token = max((rise + DOUBT * size * 0.75 * usual) / spread, LEAST_SLOPE * usual / size)
        most = size + (ms - usual) / by_token
        return int(min(most, GROWTH * max(sizes))) if most >= LEAST else 0


def _average(weights: list[float], values: list[float]) -> float:
    return sum(map(float.__mul__, weights, values)) / sum(weights)
