"""The lanes of one batch: which session decodes, which is being prefilled, which is idle.

In: what its requests need. Out: a session for each, in neighbouring lanes: first those that decode,
then those that are prefilled, then idle ones. An idle lane keeps its text, and serves a request whose
prompt begins alike.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from firp.runtime.bundle.limits import Limits
from firp.runtime.passes.batch import Batch
from firp.runtime.passes.pass_plan import PREFILL_ROWS
from firp.runtime.passes.pass_shape import BatchSize
from firp.runtime.passes.request import Needs
from firp.runtime.passes.session import Session

WASTE = 8  # times of what is needed that may be held: to copy that, others wait


class _Tenant(NamedTuple):
    """A request that has a lane."""

    needs: Needs
    prompt: int  # tokens


class LaneGroup:
    """Sessions of one batch, which is made when the first request comes. bytes_of: the cache of a batch;
    num_predictors: K; max_lanes: requests that run at once; limits: sizes that the graphs were built for.
    """

    def __init__(
        self,
        make_batch: Callable[[BatchSize], Batch],
        bytes_of: Callable[[BatchSize], int],
        num_predictors: int,
        max_lanes: int,
        limits: Limits | None,
    ):
        self._make_batch = make_batch
        self._bytes_of = bytes_of
        self._num_predictors = num_predictors
        self._max_lanes = max_lanes
        self._limits = limits
        self._batch: Batch | None = None
        self._sessions: list[Session] = []  # in the order of their lanes
        self._tenants: dict[Session, _Tenant] = {}  # of sessions that are not idle
        self._decoding = 0  # sessions that decode
        self.needed_bytes = 0  # what a batch for those that run takes at least
        self._most_needed = 0  # lately

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
    def size(self) -> BatchSize | None:
        """Of its batch; None: it has none."""
        batch = self._batch
        return batch.size if batch else None

    @property
    def least_size(self) -> BatchSize | None:
        """Of a batch for those that run, and no more."""
        return self._size(self._needs) if self._tenants else None

    @property
    def held_bytes(self) -> int:
        """What the cache of its batch takes."""
        size = self.size
        return self._bytes_of(size) if size else 0

    @property
    def _needs(self) -> list[Needs]:
        return [tenant.needs for tenant in self._tenants.values()]

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
        if self._limits:
            return self._limits.max_rows
        size = self._batch.size
        return min(size.rows // sequences, size.lane_rows)

    def sizes(self, needs: Needs, there: BatchSize | None) -> list[BatchSize]:
        """Of a batch that holds another request besides, the best first: as it is, `there`; grown, with
        lanes for those to come; as large as now needed.
        """
        if self._limits:
            return [size_built_for(self._limits, self._max_lanes, self._num_predictors)]
        together = [*self._needs, needs]
        least = self._size(together)
        if there and all(has >= need for has, need in zip(there, least, strict=True)):
            return [there]
        lanes = min(self._max_lanes, 1 << (len(together) - 1).bit_length())
        roomy = self._size(together, lanes)
        return [BatchSize(*map(max, roomy, there or roomy)), roomy, least]

    def size_alone(self, needs: Needs) -> BatchSize:
        """Of a batch for one request."""
        return self._size([needs])

    def admit(self, needs: Needs, prompt: Sequence[int], size: BatchSize, keep: bool) -> Session:
        """A session for a request, the idle one that holds most of its prompt. size: of `sizes`; keep:
        whether there is memory for the batch as it is beside the new one, so that idle lanes keep their
        texts. Raises FirpError when the memory is not there.
        """
        idle = range(self.active, len(self._sessions))
        if idle:  # it comes first: lanes behind may go
            place = max(idle, key=lambda lane: self._sessions[lane].known_prefix(prompt))
            self._swap(place, self.active)
        self._become(size, keep)
        self._fit(len(prompt))
        session = self._sessions[self.active]
        self._tenants[session] = _Tenant(needs, len(prompt))
        self._note_needs()
        return session

    def _become(self, size: BatchSize, keep: bool) -> None:
        """Have a batch of this size; with it the first lanes keep their texts, as far as they fit."""
        batch = self._batch
        if batch is not None and batch.size != size:
            if self._tenants or (keep and batch.memory.free_reads):  # a device may not have room for both
                batch.resize(size)
            else:
                del batch
                self.give_back()
        if self._batch is None:
            self._batch = self._make_batch(size)
        del self._sessions[size.lanes :]
        self._sessions += [Session(self._batch, lane) for lane in range(len(self._sessions), size.lanes)]

    def _size(self, together: Sequence[Needs], lanes: int = 0) -> BatchSize:
        """A batch for requests that run together. A pass of several may have as many rows as the longest
        tree, and as many pseudo rows as the widest.
        """
        lanes = lanes or len(together)
        tree = max(need.tree_rows for need in together)
        rows = max(PREFILL_ROWS + self._num_predictors, lanes * tree)
        return BatchSize(max(need.capacity for need in together), rows, rows, lanes, 2 * tree)

    def _note_needs(self) -> None:
        least = self.least_size
        self.needed_bytes = self._bytes_of(least) if least else 0
        self._most_needed = max(self._most_needed, self.needed_bytes)

    def hardly_used(self) -> bool:
        """Whether it holds much more than it ever needed since this was asked before."""
        most, self._most_needed = self._most_needed, self.needed_bytes
        return self.held_bytes > WASTE * most

    def shrink(self) -> None:
        """Hold what those that run need, and no more; texts of idle lanes are forgotten."""
        if self._limits or self.held_bytes <= self.needed_bytes:
            return
        if self._tenants:
            self._become(self.least_size, keep=True)
            self._fit(0)
        else:
            self.give_back()

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
        self._note_needs()
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
        self.needed_bytes = 0


def size_built_for(limits: Limits, lanes: int, num_predictors: int) -> BatchSize:
    """A batch of graphs that were built for a size: all of it at once."""
    decoded = lanes * max(1 + num_predictors, limits.max_rows)
    return BatchSize(limits.max_context, max(PREFILL_ROWS + num_predictors, decoded), decoded, lanes)
