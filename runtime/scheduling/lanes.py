"""Where requests run: two batches, so that a long text does not make the attention of short ones long.

In: what requests need. Out: a session for each. All lanes of a batch are as long as its longest text,
so a request that would make passes much longer, or find them so, runs in the other batch. Memory is
reserved for all that a request may need when it is admitted, so that nothing ever has to be taken
away from one that runs.
"""

from collections.abc import Callable, Sequence
from typing import Any

from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.format import Manifest
from firp.runtime.bundle.limits import Limits
from firp.runtime.errors import RequestTooLargeError
from firp.runtime.passes.batch import Batch
from firp.runtime.passes.in_place_cache import most_slots
from firp.runtime.passes.pass_plan import LEAST_PIECE
from firp.runtime.passes.pass_shape import BatchSize
from firp.runtime.passes.request import Needs
from firp.runtime.passes.session import Session
from firp.runtime.scheduling.lane_group import LaneGroup
from firp.runtime.scheduling.prefixes import Prefixes

WORTH_A_PASS = 0.25  # of the bytes of all weights: what a pass may read more of keys and values
WEIGHTS_FILE = "model.safetensors"


class Lanes:
    """Sessions of two batches; of one where graphs were built for its size. max_lanes: requests that run
    at once; cache_bytes: for keys and values, None for no bound; limits: sizes that the graphs were
    built for; prefixes: what was computed before.
    """

    def __init__(
        self,
        manifest: Manifest,
        make_batch: Callable[[BatchSize], Batch],
        max_lanes: int,
        cache_bytes: int | None,
        limits: Limits | None,
        prefixes: Prefixes,
    ):
        self._prefixes = prefixes
        self.predictors = manifest.num_predictors
        self._cache_bytes = cache_bytes
        self._limits = limits
        model = manifest.model
        cache = DTYPES[manifest.precision.cache].storage
        row = model.attention.num_key_value_heads * model.attention.head_dim * cache.itemsize
        self._slot_bytes = model.slabs * row
        self._pass_slots = WORTH_A_PASS * manifest.files[WEIGHTS_FILE].size / self._slot_bytes
        self._max_lanes = self._built_for(max_lanes, limits) if limits else max_lanes
        self.groups = [
            LaneGroup(make_batch, manifest.num_predictors, self._max_lanes, limits)
            for _ in range(1 if limits else 2)
        ]

    def _built_for(self, max_lanes: int, limits: Limits) -> int:
        """Lanes of a batch whose memory is taken once and for all: several have one more, to copy to."""
        lanes = min(max_lanes, limits.max_batch)
        if self._cache_bytes is not None:
            lanes = min(lanes, self._cache_bytes // (limits.max_context * self._slot_bytes) - 1)
        return max(lanes, 1)

    @property
    def most(self) -> int:
        """Requests that run at once at most."""
        return self._max_lanes

    @property
    def decoding(self) -> int:
        """Sessions that decode."""
        return sum(len(group.decoding) for group in self.groups)

    @property
    def active(self) -> int:
        """Sessions that are not idle."""
        return sum(group.active for group in self.groups)

    @property
    def cache_bytes(self) -> int:
        """Reserved for keys and values of sessions that are not idle."""
        return sum(group.slots() for group in self.groups) * self._slot_bytes

    def check(self, needs: Needs) -> None:
        """Raises RequestTooLargeError for a request that could never run."""
        taken = most_slots(needs.capacity, needs.tree_rows) * self._slot_bytes
        if self._cache_bytes is not None and taken > self._cache_bytes:
            raise RequestTooLargeError(
                "request larger than the cache",
                got=f"{needs.capacity} tokens, {taken} bytes",
                expected=f"at most {self._cache_bytes} bytes",
                fix="a shorter prompt, fewer new tokens, or more --kv-bytes",
            )

    def admit(self, needs: Needs, prompt: Sequence[int]) -> Session | None:
        """A session for a request; None while there is no room. Raises FirpError when the memory is not
        there.
        """
        if self.active == self._max_lanes:
            return None
        for group in self._in_order(prompt):
            if self._has_room(group, needs):
                session = group.admit(needs, prompt)
                self._look_up(session, prompt)
                return session
        return None

    def _in_order(self, prompt: Sequence[int]) -> list[LaneGroup]:
        """The batches, the one first in which a prompt adds least to what passes attend over; to begin
        another one counts as much as the worth of a pass.
        """
        if not self.active:
            return sorted(self.groups, key=lambda group: -group.known_prefix(prompt))
        return sorted(
            self.groups,
            key=lambda group: group.slots_added(len(prompt)) if group.active else self._pass_slots,
        )

    def _has_room(self, group: LaneGroup, needs: Needs) -> bool:
        """Whether a request fits into a batch; memory of a batch that idles is given back for it."""
        if self._cache_bytes is None:
            return True
        others = [other for other in self.groups if other is not group]
        slots = group.slots(needs) + sum(other.slots() for other in others)
        if slots * self._slot_bytes > self._cache_bytes:
            return False
        for other in others:
            if not other.active and (slots + other.held_slots) * self._slot_bytes > self._cache_bytes:
                other.give_back()
        return True

    def group_of(self, session: Session) -> LaneGroup:
        """The batch in which a session runs that is not idle."""
        return next(group for group in self.groups if session in group)

    def _shares(self, session: Session) -> bool:
        """Whether prefixes are kept: blocks are copied in host memory, by caches that grow."""
        return not self._limits and session.batch.memory.free_reads

    def _look_up(self, session: Session, prompt: Sequence[int]) -> None:
        """Take over a prefix that reaches further than what the lane holds of the prompt."""
        if not self._shares(session):
            return
        blocks = self._prefixes.longest(prompt[:-LEAST_PIECE], session.known_prefix(prompt))
        if blocks:
            session.take_over(prompt, blocks)

    def keep(self, session: Session) -> None:
        """Let others share what a session has computed."""
        if self._shares(session):
            self._prefixes.add(session.exact_tokens, session.copy_slots)

    def release(self, session: Session) -> None:
        """A session's request has ended: it is idle, and keeps its text."""
        self.keep(session)
        self.group_of(session).release(session)

    def drop(self) -> None:
        """Give all memory back, that of requests that run too; for when nothing more will run."""
        for group in self.groups:
            group.drop()

    def give_back(self) -> None:
        """Give the memory of idle batches back, and forget their texts."""
        for group in self.groups:
            group.give_back()


def default_bytes(available: int | None, limits: Any) -> tuple[int | None, int]:
    """Bytes for keys and values, and for prefixes, where nobody says how many: half and a quarter of
    what is free. Graphs that were built for a size have their own bound, and keep no prefixes.
    """
    if limits:
        return None, 0
    return (None, 0) if available is None else (available // 2, available // 4)
