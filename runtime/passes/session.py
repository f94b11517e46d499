"""One sequence in a batch: the tokens that it has cached, and its passes.

In: a batch and a lane. Out: `Pass`, on the host. A session belongs to one caller.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

import numpy as np

from firp.runtime.errors import SessionBusyError
from firp.runtime.passes.batch import Batch
from firp.runtime.passes.pass_plan import LEAST_PIECE, PREFILL_ROWS, Pass, PassPlan
from firp.runtime.trees.guesses import Guesses


class Session:
    """A lane of a batch. A pass that does not fit the batch is an error."""

    def __init__(self, batch: Batch, lane: int = 0):
        self.batch = batch
        self.lane = lane
        self.place = 0  # in the last pass, of the lanes that ran
        self.tokens: list[int] = []  # whose keys and values the cache holds, as far as passes put them there
        self._computed = 0  # tokens from the first on whose keys and values come from passes of prompts
        self._last: PassPlan | None = None  # of the last pass
        self._lock = threading.Lock()

    @property
    def length(self) -> int:
        """P: cached tokens."""
        return self.batch.kv.lengths[self.lane]

    @property
    def capacity(self) -> int:
        """Tokens that it may cache, prompt included."""
        return self.batch.kv.capacity

    @property
    def prefill_rows(self) -> int:
        """Tokens of a prompt that one pass takes at most."""
        return min(PREFILL_ROWS, self.batch.size.rows - self.batch.manifest.num_predictors)

    @property
    def slots(self) -> int:
        """Slots that a row attends over, those that its mask hides included."""
        return len(self.batch.kv.view(range(self.lane, self.lane + 1), 1).seen.slots)

    def reserve(self, rows: int) -> None:
        """Make room for so many rows after the cached tokens at once, as far as there is memory: many
        small passes would each find too little.
        """
        self.batch.kv.reserve(range(self.lane, self.lane + 1), self._that_fit(rows))

    def prepare(self, rows: int, in_time: Callable[[], bool]) -> bool:
        """Whether memory for as much is ready; else it is made ready as far as there is time."""
        return self.batch.kv.prepare(self.lane, self._that_fit(rows), in_time)

    def _that_fit(self, rows: int) -> int:
        return min(rows, self.batch.kv.most - self.length)

    @property
    def spent_ms(self) -> dict[str, float]:
        """Milliseconds by graph name, and of copies, of everything that has been waited for."""
        return self.batch.spent_ms

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the session for one caller; a second one gets a SessionBusyError and the cache stays
        whole.
        """
        if not self._lock.acquire(blocking=False):
            raise SessionBusyError(
                "session in use",
                got="a second caller",
                expected="one at a time",
                fix="give each thread its own session",
            )
        self.batch.forget_marks()  # of a caller that left early
        try:
            yield
        finally:
            self._lock.release()

    def forward(self, plan: PassPlan) -> Pass:
        """One pass after the cached tokens. Raises FirpError when it does not fit the batch."""
        return forward_together([self], [plan])[0]

    def draft(self, offsets: int) -> Guesses:
        """A draft pass: the pseudo rows of the row committed last, through the upper half alone."""
        return self.batch.draft(self.lane, offsets)

    def commit(self, rows: Sequence[int]) -> None:
        """Keep the keys and values of these rows of the last pass, in this order."""
        self.batch.commit(self.lane, self.place, rows)
        if self._last.prompt and self._computed == len(self.tokens):
            self._computed += len(rows)
        self.tokens += [self._last.tree.tokens[row] for row in rows]

    def rewind(self, length: int) -> None:
        """Keep the first `length` cached tokens, and forget the others."""
        self.batch.kv.rewind(self.lane, length)
        del self.tokens[length:]
        self._computed = min(self._computed, length)

    def known_prefix(self, prompt: Sequence[int]) -> int:
        """Count the first tokens of a prompt that are in the cache already; the last two have to be
        computed, since one row alone would have other bits. Of a quantized bundle only rows count that
        a prompt's pass computed: those of decoding have other bits, and integers make much of them.
        """
        pairs = zip(self.tokens, prompt[:-LEAST_PIECE], strict=False)
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return min(known, len(self.exact_tokens))

    @property
    def exact_tokens(self) -> list[int]:
        """Cached tokens from the first on, whose keys and values another request may take over: of a
        quantized bundle those that a prompt's pass computed.
        """
        return self.tokens[: self._computed] if self.batch.manifest.quantization else self.tokens

    def copy_slots(self, start: int, stop: int) -> np.ndarray:
        """Keys and values of cached tokens, [2N, Hkv, n, Dh], in host memory."""
        return self.batch.kv.read(self.lane, start, stop)

    def take_over(self, tokens: Sequence[int], blocks: Sequence[np.ndarray]) -> None:
        """Hold the first of these tokens instead of what it holds, by blocks of keys and values."""
        self.rewind(0)
        self.reserve(sum(block.shape[2] for block in blocks))
        for block in blocks:
            self.batch.kv.append(self.lane, block)
        self.tokens = list(tokens[: self.length])
        self._computed = self.length

    def hidden_states(self, rows: int) -> np.ndarray:
        """[rows, D] f32: the first rows of the last pass at the prediction layer."""
        return self.batch.hidden_states(self.place, rows)


def forward_together(sessions: Sequence[Session], plans: Sequence[PassPlan]) -> list[Pass]:
    """One pass of sessions in neighbouring lanes of one batch, in the order of their lanes. Raises
    FirpError when it does not fit the batch.
    """
    first = sessions[0].lane
    for place, (session, plan) in enumerate(zip(sessions, plans, strict=True)):
        session.place = place
        session._last = plan
    return sessions[0].batch.forward(range(first, first + len(sessions)), plans)
