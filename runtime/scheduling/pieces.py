"""How large a piece of a prompt may be, for the time that others can wait.

In: pieces as they were computed, with what each took. Out: the size of the next one. Time grows with
the tokens of a piece in less than proportion, so one that was short enough tells how much larger the
next may be; and with the slots that they attend over.
"""

FIRST = 8  # tokens of the first piece of all, and of one that must be computed although it takes too long
STEP = 64  # slots that count as alike
FREE = 1024  # slots over which attention takes less time than everything else in a piece
SMOOTHING = 0.5  # weight of the last time in an average


class Pieces:
    """Averages of milliseconds, by slots in view and tokens."""

    def __init__(self):
        self._ms: dict[int, dict[int, float]] = {}

    def note(self, tokens: int, slots: int, ms: float) -> None:
        """Take note of a piece: milliseconds of its pass, over so many slots."""
        known = self._ms.setdefault(_rounded(slots), {})
        before = known.get(tokens, ms)
        known[tokens] = before + SMOOTHING * (ms - before)

    def most(self, slots: int, ms: float) -> int:
        """Tokens of the largest piece over so many slots that should take no longer; 0: not even two."""
        if not self._ms:
            return FIRST
        slots = _rounded(slots)
        nearest = min(self._ms, key=lambda known: (abs(known - slots), known))
        longer = max(1.0, (FREE + slots) / (FREE + nearest))
        times = {tokens: longer * known for tokens, known in self._ms[nearest].items()}
        most = max((tokens * ms / known for tokens, known in times.items() if known <= ms), default=0.0)
        if not most:  # all took longer: as if half of their time did not depend on their size
            most = max(tokens * (2 * ms / known - 1) for tokens, known in times.items())
        return round(most) if most >= 2 else 0


def _rounded(slots: int) -> int:
    return -(-slots // STEP) * STEP
