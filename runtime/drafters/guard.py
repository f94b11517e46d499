"""The guard of a request: drafts where they win, plain decoding where they lose.

In: what each step emitted, and how long it took. Out: whether the next step drafts. A step that
emits n tokens saves n plain steps and costs its own time. Two sums are kept, both in plain steps, so
that no machine's speed stands here: what drafts lost lately and did not win back decides whether
they go on; what they lost in all bounds how often they are tried again.
"""

FIRST_PROBE = 3  # steps before the first plain one, which tells what a plain step costs here
PROBE_WAITS = (32, 64)  # steps from one plain step to the next while drafts are on: at first, at most
RETRY_WAITS = (32, 1024)  # steps until drafts that lost are tried again: at first, at most
MARGIN = 1.01  # what drafts must win
PATIENCE = 2.0  # plain steps that drafts may lose lately ...
MOST_PATIENCE = 16.0
ALLOWANCE = 3.0  # ... and in all, at first ...
GROWTH = 0.015  # ... and for each token more
STAKE = 1.0  # plain steps that another try may lose
SMOOTHING = 0.2  # weight of a plain step in their average, once there are five
OUTLIER = 2.0  # averages that a plain step counts for at most
OTHER_SPEED = 1.25  # averages that a plain step takes where the machine has become slower


class Guard:
    """Judges the drafts of one request. caution: how many times less than usual they may lose in all."""

    def __init__(self, caution: float = 1.0):
        self._caution = caution
        self._plain_ms = 0.0  # of a plain step, an exponential average; 0: not known yet
        self._plain_steps = 0
        self._unjudged: list[tuple[int, float]] = []  # tokens and times of drafted steps until it is
        self._steps = 0  # so far, plain and drafted
        self._tokens = 0  # that they emitted
        self._saved = 0.0  # by drafts in all; negative: lost
        self._lost = 0.0  # by drafts lately
        self._cost = STAKE  # of the last drafted step
        self._on = True
        self._off_at = 0  # step from which drafts are off
        self._retry_at = 0  # step from which they may be tried again
        self._went_on = False  # whether the last step drafted
        self._retry_wait = RETRY_WAITS[0]
        self._probe_at = FIRST_PROBE  # step that is plain although drafts are on
        self._probe_wait = PROBE_WAITS[0]  # from there to the next such step

    @property
    def drafts(self) -> bool:
        """Whether the next step drafts."""
        return self._on and self._steps != self._probe_at

    @property
    def left(self) -> float:
        """Plain steps that drafts may still lose in all."""
        earned = GROWTH / self._caution * self._tokens
        return ALLOWANCE / self._caution + earned + self._saved

    def plain_step(self, ms: float, drafting_ms: float = 0.0) -> None:
        """Take note of a plain step. drafting_ms: spent before it on drafts that came to nothing."""
        average = self._plain_ms
        self._plain_steps += 1
        weight = max(SMOOTHING, 1 / self._plain_steps)
        self._plain_ms += weight * (min(ms, OUTLIER * average or ms) - average)
        for tokens, drafted_ms in self._unjudged:
            self._judge(tokens, drafted_ms)
        self._unjudged.clear()
        self._saved -= drafting_ms / self._plain_ms
        self._lost += drafting_ms / self._plain_ms
        first_off = not self._on and self._steps == self._off_at
        self._end(1)
        if first_off and ms > OTHER_SPEED * average:
            self._acquit(ms)

    def drafted_step(self, tokens: int, ms: float) -> None:
        """Take note of a step that verified drafts, or let the next one have some."""
        if self._plain_ms and self._went_on:
            self._judge(tokens, ms)
        elif self._plain_ms:  # nothing drafted for this step: no evidence against drafts, but a loss
            self._saved += tokens - ms / self._plain_ms
        elif self._went_on:  # the first step of all is slow, since much happens once
            self._unjudged.append((tokens, ms))
        self._end(tokens)

    def _judge(self, tokens: int, ms: float) -> None:
        self._cost = ms / self._plain_ms
        self._saved += tokens - self._cost
        self._lost = max(0.0, self._lost + MARGIN * self._cost - tokens)
        if not self._lost:
            self._retry_wait = RETRY_WAITS[0]

    def _acquit(self, plain_ms: float) -> None:
        """Drafts seemed to lose because the machine became slower: what they lost is forgotten."""
        self._plain_ms = plain_ms
        self._saved += self._lost
        self._turn_on(0.0)

    def _turn_on(self, lost: float) -> None:
        self._on = True
        self._lost = lost
        self._probe_at = self._steps + PROBE_WAITS[0]
        self._probe_wait = PROBE_WAITS[0]

    def _end(self, tokens: int) -> None:
        """End a step, and turn drafts on or off."""
        self._went_on = self.drafts
        if self._on and not self._went_on:
            self._probe_at += self._probe_wait
            self._probe_wait = min(2 * self._probe_wait, PROBE_WAITS[1])
        self._steps += 1
        self._tokens += tokens
        limit = min(PATIENCE + GROWTH / self._caution * self._tokens, MOST_PATIENCE)
        if self._on and (self._lost > limit or self.left < 0):
            self._on = False
            self._off_at = self._steps
            self._retry_at = self._steps + self._retry_wait
            self._retry_wait = min(2 * self._retry_wait, RETRY_WAITS[1])
        elif not self._on and self._steps >= self._retry_at and self.left >= max(STAKE, self._cost):
            self._turn_on(max(0.0, limit - STAKE))
