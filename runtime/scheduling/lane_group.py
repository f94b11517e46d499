"""The lanes of one batch: which session decodes, which is being prefilled, which is idle.

In: what its requests need. Out: a session for each, in neighbouring lanes: first those that decode,
then those that are prefilled, then idle ones. An idle lane keeps its text, and serves a request whose
prompt begins alike.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from firp.runtime.bundle.limits import Limits
from firp.runtime.passes.batch import Batch
from firp.runtime.passes.in_place_cache import most_slots
from firp.runtime.passes.pass_plan import PREFILL_ROWS
from firp.runtime.passes.pass_shape import BatchSize
from firp.runtime.passes.request import Needs
from firp.runtime.passes.session import Session


class _Tenant(NamedTuple):
    """A request that has a lane."""

    needs: Needs
    prompt: int  # tokens


class LaneGroup:
    """Sessions of one batch, which is made when the first request comes. num_predictors: K; max_lanes:
    requests that run at once; limits: sizes that the graphs were built for.
    """

    def __init__(
        self,
        make_batch: Callable[[BatchSize], Batch],
        num_predictors: int,
        max_lanes: int,
        limits: Limits | None,
    ):
        self._make_batch = make_batch
        self._num_predictors = num_predictors
        self._max_lanes = max_lanes
        self._limits = limits
        self._batch: Batch | None = None
        self._sessions: list[Session] = []  # in the order of their lanes
        self._tenants: dict[Session, _Tenant] = {}  # of sessions that are not idle
        self._decoding = 0  # sessions that decode

    def __contains__(self, session: Session) -> bool:
        return session in self._tenants

    @property
    def decoding(self) -> Sequence[Session]:
        """Sessions that decode, in the order of their lanes."""
        return self._sessions[: self._decoding]

    @property
    def active(self) -> int:
        """Sessions that are not idle."""
        return len(self._tenants)

    @property
    def held_slots(self) -> int:
        """Slots that its batch has memory for; 0: it has none."""
        size = self._batch.size if self._batch else None
        return size.lanes * most_slots(size.capacity, size.rows) if size else 0

    def slots(self, *more: Needs) -> int:
        """Slots that its requests, and some more, may need at most: every lane is as long as the longest."""
        needs = [*(tenant.needs for tenant in list(self._tenants.values())), *more]  # any thread may ask
        if not needs:
            return 0
        longest = most_slots(max(need.capacity for need in needs), max(need.tree_rows for need in needs))
        return len(needs) * longest

    @property
    def longest(self) -> int:
        """Tokens of the longest text that runs, those of its prompt that are not computed yet included."""
        return max((max(one.prompt, session.length) for session, one in self._tenants.items()), default=0)

    def slots_added(self, tokens: int) -> int:
        """Slots more that a pass attends over, of its lanes and that of another prompt of so many tokens,
        than each would alone.
        """
        return self.active * max(0, tokens - self.longest) + max(0, self.longest - tokens)

    def known_prefix(self, prompt: Sequence[int]) -> int:
        """Tokens of a prompt that an idle lane holds."""
        return max((one.known_prefix(prompt) for one in self._sessions[self.active :]), default=0)

    def pass_rows(self, sequences: int) -> int:
        """Rows that each of so many sequences may have in a pass, pseudo rows included."""
        return self._limits.max_rows if self._limits else self._batch.size.rows // sequences

    def admit(self, needs: Needs, prompt: Sequence[int]) -> Session:
        """A session for a request, the idle one that holds most of its prompt. Raises FirpError when the
        memory is not there.
        """
        self._make_room([*(tenant.needs for tenant in self._tenants.values()), needs])
        self._fit(len(prompt))
        place = max(
            range(self.active, len(self._sessions)),
            key=lambda lane: self._sessions[lane].known_prefix(prompt),
        )
        self._swap(place, self.active)
        session = self._sessions[self.active]
        self._tenants[session] = _Tenant(needs, len(prompt))
        return session

    def _make_room(self, together: Sequence[Needs]) -> None:
        size = self._size(together)
        there = self._batch.size if self._batch else None
        grows = there is not None and any(need > has for need, has in zip(size, there, strict=True))
        if grows and not self._tenants and not self._batch.memory.free_reads:
            self.give_back()  # a device may not have room for both
            size, grows = BatchSize(*map(max, size, there)), False
        if self._batch is None:
            self._batch = self._make_batch(size)
        elif grows:
            self._batch.resize(BatchSize(*map(max, size, there)))
        self._sessions += [
            Session(self._batch, lane) for lane in range(len(self._sessions), self._batch.size.lanes)
        ]

    def _size(self, together: Sequence[Needs]) -> BatchSize:
        """As many lanes as run together, rounded up to a power of two; at once all that graphs were built
        for.
        """
        k, limits = self._num_predictors, self._limits
        if limits:
            lanes = self._max_lanes
            decoded = lanes * max(1 + k, limits.max_rows)
            return BatchSize(limits.max_context, max(PREFILL_ROWS + k, decoded), decoded, lanes)
        lanes = min(self._max_lanes, 1 << (len(together) - 1).bit_length())
        rows = max(PREFILL_ROWS + k, lanes * max(need.tree_rows for need in together))
        return BatchSize(max(need.capacity for need in together), rows, rows, lanes)

    def start_decoding(self, session: Session) -> None:
        """A session's prompt is computed: it decodes with the others."""
        self._swap(session.lane, self._decoding)
        self._decoding += 1

    def release(self, session: Session) -> None:
        """A session's request has ended: it is idle, and keeps its text."""
        lane = session.lane
        if lane < self._decoding:
            self._decoding -= 1
            self._swap(lane, self._decoding)
        self._swap(session.lane, self.active - 1)
        del self._tenants[session]
        if self._tenants:
            self._fit(0)

    def _fit(self, tokens: int) -> None:
        """Let passes see no more slots than the texts that run need, and one of so many tokens: after a
        long text they would take as long as with it.
        """
        self._batch.kv.shrink(max(tokens, self.longest))
        for session in self._sessions[self.active :]:
            session.rewind(min(session.length, len(session.tokens)))

    def _swap(self, lane: int, other: int) -> None:
        if lane == other:
            return
        self._batch.swap(lane, other)
        sessions = self._sessions
        sessions[lane], sessions[other] = sessions[other], sessions[lane]
        for place in (lane, other):
            sessions[place].lane = place

    def give_back(self) -> None:
        """Give the memory back, and forget all texts; for when every session is idle. What graphs were
        built for is kept: it is always the same.
        """
        if not self._tenants and not self._limits:
            self._batch = None
            self._sessions = []

    def drop(self) -> None:
        """Give the memory back, whoever has it; for when nothing more will run."""
        self._tenants.clear()
        self._decoding = 0
        self._batch = None
        self._sessions = []
