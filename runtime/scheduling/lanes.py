"""Where requests run: two batches, so that a long text does not make the attention of short ones long.

In: what requests need. Out: a session for each. All lanes of a batch are as long as its longest text,
so a request that would make passes much longer, or find them so, runs in the other batch. Memory is
there for all that a request may need when it is admitted, so that nothing ever has to be taken
away from one that runs; what idle lanes hold goes for those that run. The bound is of what the caches
really take, at any moment: also while a batch is copied into a larger one.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.format import Manifest
from firp.runtime.bundle.graph_spec import IN_PLACE, PREFIX
from firp.runtime.bundle.limits import Limits
from firp.runtime.errors import FirpError, RequestTooLargeError
from firp.runtime.passes.batch import Batch
from firp.runtime.passes.kv_cache import cache_bytes, size_for
from firp.runtime.passes.pass_plan import LEAST_PIECE
from firp.runtime.passes.pass_shape import BatchSize
from firp.runtime.passes.request import Needs
from firp.runtime.passes.session import Session
from firp.runtime.scheduling.lane_group import LaneGroup, size_built_for
from firp.runtime.scheduling.prefixes import Prefixes

WORTH_A_PASS = 0.25  # of the bytes of all weights: what a pass may read more of keys and values
_LEAST = Needs(2, 2, 1)  # of a request: two tokens
LOOK_SECONDS = 30.0  # so often what batches hold is compared with what they needed
WEIGHTS_FILE = "model.safetensors"


class Lanes:
    """Sessions of two batches; of one where graphs were built for its size. max_lanes: requests that run
    at once; kv_bytes: for keys and values, None for no bound; limits: sizes that the graphs were
    built for; prefixes: what was computed before.
    """

    def __init__(
        self,
        manifest: Manifest,
        make_batch: Callable[[BatchSize], Batch],
        max_lanes: int,
        kv_bytes: int | None,
        limits: Limits | None,
        prefixes: Prefixes,
    ):
        self._prefixes = prefixes
        self.predictors = manifest.num_predictors
        self._kv_bytes = math.inf if kv_bytes is None else kv_bytes
        self._limits = limits
        model = manifest.model
        cache = DTYPES[manifest.precision.cache].storage
        row = model.attention.num_key_value_heads * model.attention.head_dim * cache.itemsize
        slot_bytes = model.slabs * row
        self._pass_slots = WORTH_A_PASS * manifest.files[WEIGHTS_FILE].size / slot_bytes
        # no method of this object, which batches would keep alive: devices get their memory back at once
        self._bytes_of = functools.partial(_bytes_of, manifest, PREFIX if limits else IN_PLACE)
        self._max_lanes = self._built_for(max_lanes, limits) if limits else max_lanes
        self._look_at = 0.0  # what batches hold
        self.groups = [
            LaneGroup(make_batch, self._bytes_of, manifest.num_predictors, self._max_lanes, limits)
            for _ in range(1 if limits else 2)
        ]
        least = self.bytes_alone(_LEAST)
        if least > self._kv_bytes and not limits:
            fix = f"--kv-bytes {least} or more"
            raise FirpError("kv_bytes holds no request", got=kv_bytes, expected=f"at least {least}", fix=fix)

    def _built_for(self, max_lanes: int, limits: Limits) -> int:
        """Lanes of a batch whose memory is taken once and for all; one at least."""
        lanes = min(max_lanes, limits.max_batch)
        while lanes > 1 and self._bytes_of(size_built_for(limits, lanes, self.predictors)) > self._kv_bytes:
            lanes -= 1
        return lanes

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
        """What sessions that are not idle may need of the caches."""
        return sum(group.needed_bytes for group in self.groups)

    @property
    def held_bytes(self) -> int:
        """What the caches take."""
        return sum(group.held_bytes for group in self.groups)

    def bytes_alone(self, needs: Needs) -> int:
        """What a request takes of a cache: a lane that is as long as it may become."""
        if self._limits:
            return self._bytes_of(size_built_for(self._limits, 1, self.predictors))
        return self._bytes_of(self.groups[0].size_alone(needs))

    def check(self, needs: Needs) -> None:
        """Raises RequestTooLargeError for a request that could never run."""
        taken = self.bytes_alone(needs)
        if taken > self._kv_bytes and not self._limits:
            raise RequestTooLargeError(
                "request larger than the cache",
                got=f"{needs.capacity} tokens, {taken} bytes",
                expected=f"at most {self._kv_bytes} bytes",
                fix="a shorter prompt, fewer new tokens, or more --kv-bytes",
            )

    def admit(self, needs: Needs, prompt: Sequence[int]) -> Session | None:
        """A session for a request; None while there is no room. Raises FirpError when the memory is not
        there.
        """
        if self.active == self._max_lanes:
            return None
        for group in self._in_order(prompt):
            size = self._room_for(group, needs)
            if size:
                keep = self.held_bytes + self._bytes_of(size) <= self._kv_bytes
                session = group.admit(needs, prompt, size, keep)
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

    def _room_for(self, group: LaneGroup, needs: Needs) -> BatchSize | None:
        """The size that a batch gets for one request more; None while there is no room. What idle lanes
        hold is given back where that makes room.
        """
        size = self._fitting(group, needs, shrunk=False)
        if size is None and self._fitting(group, needs, shrunk=True):
            for each in self._idle_first():
                self._shrink(each)
            size = self._fitting(group, needs, shrunk=False)
        return size

    def _fitting(self, group: LaneGroup, needs: Needs, shrunk: bool) -> BatchSize | None:
        """The best size that fits beside what is held. shrunk: if idle lanes held nothing."""
        if self._limits:  # whose memory is taken once and for all
            return group.sizes(needs, None)[0]
        there = group.least_size if shrunk else group.size
        held = sum(
            each.needed_bytes if shrunk else each.held_bytes
            for each in self.groups
            if each is not group or group.active  # a batch that idles goes before another is made
        )
        for size in group.sizes(needs, there):
            if size == there or held + self._bytes_of(size) <= self._kv_bytes:
                return size
        return None

    def _idle_first(self) -> list[LaneGroup]:
        return sorted(self.groups, key=lambda group: group.active)

    def _shrink(self, group: LaneGroup) -> None:
        """Let a batch hold what is needed of it, where there is memory to copy that."""
        if group.active and self.held_bytes + group.needed_bytes > self._kv_bytes:
            return
        with contextlib.suppress(FirpError):  # a device without room for both
            group.shrink()

    def look_after(self, now: float) -> None:
        """Give back what batches have not needed for some time, now and then. now: seconds."""
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        for group in self._idle_first():
            if group.hardly_used():
                self._shrink(group)

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


def _bytes_of(manifest: Manifest, contract: str, size: BatchSize) -> int:
    """The cache of a batch."""
    return cache_bytes(contract, size_for(manifest, size))


def default_bytes(available: int | None, limits: Any, kv_bytes: int | None) -> tuple[int | None, int]:
    """Bytes for keys and values, and for prefixes, where nobody says how many: half and a quarter of
    what is free; for prefixes at most half of `kv_bytes`, where those are given. Graphs that were built
    for a size have their own bound, and keep no prefixes.
    """
    if limits:
        return kv_bytes, 0
    free = available or 0
    if kv_bytes is not None:
        return kv_bytes, min(free // 4, kv_bytes // 2)
    return (None if available is None else free // 2), free // 4
