"""The lanes of the engine's batch: which session decodes, which is being prefilled, which is idle.

In: what requests need. Out: a session for each, in neighbouring lanes: first those that decode, then
those that are prefilled, then idle ones. An idle lane keeps its text, and serves a request whose
prompt begins alike. Memory is reserved for all that a request may need when it is admitted, so that
nothing ever has to be taken away from one that runs.
"""

from collections.abc import Callable, Sequence
from typing import Any

from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.format import Manifest
from firp.runtime.bundle.limits import Limits
from firp.runtime.errors import RequestTooLargeError
from firp.runtime.passes.batch import Batch
from firp.runtime.passes.in_place_cache import most_slots
from firp.runtime.passes.pass_plan import LEAST_PIECE, PREFILL_ROWS
from firp.runtime.passes.pass_shape import BatchSize
from firp.runtime.passes.request import Needs
from firp.runtime.passes.session import Session
from firp.runtime.scheduling.prefixes import Prefixes


class Lanes:
    """Sessions of one batch. max_lanes: requests that run at once; cache_bytes: for keys and values,
    None for no bound; limits: sizes that the graphs were built for; prefixes: what was
    computed before.
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
        self._make_batch = make_batch
        self.predictors = manifest.num_predictors
        self._cache_bytes = cache_bytes
        self._limits = limits
        model = manifest.model
        cache = DTYPES[manifest.precision.cache].storage
        row = model.attention.num_key_value_heads * model.attention.head_dim * cache.itemsize
        self._slot_bytes = 2 * model.num_hidden_layers * row
        self._max_lanes = self._built_for(max_lanes, limits) if limits else max_lanes
        self._batch: Batch | None = None
        self._sessions: list[Session] = []  # in the order of their lanes
        self._needs: dict[Session, Needs] = {}  # of sessions that are not idle
        self._decoding = 0  # sessions that decode

    def _built_for(self, max_lanes: int, limits: Limits) -> int:
        """Lanes of a batch whose memory is taken once and for all: several have one more, to copy to."""
        lanes = min(max_lanes, limits.max_batch)
        if self._cache_bytes is not None:
            lanes = min(lanes, self._cache_bytes // (limits.max_context * self._slot_bytes) - 1)
        return max(lanes, 1)

    @property
    def decoding(self) -> Sequence[Session]:
        """Sessions that decode, in the order of their lanes."""
        return self._sessions[: self._decoding]

    @property
    def active(self) -> int:
        """Sessions that are not idle."""
        return len(self._needs)

    @property
    def cache_bytes(self) -> int:
        """Reserved for keys and values of sessions that are not idle."""
        return self._bytes([*self._needs.values()])

    def _bytes(self, needs: Sequence[Needs]) -> int:
        if not needs:
            return 0
        slots = most_slots(max(need.capacity for need in needs), max(need.tree_rows for need in needs))
        return len(needs) * slots * self._slot_bytes

    def check(self, needs: Needs) -> None:
        """Raises RequestTooLargeError for a request that could never run."""
        taken = self._bytes([needs])
        if self._cache_bytes is not None and taken > self._cache_bytes:
            raise RequestTooLargeError(
                "request larger than the cache",
                got=f"{needs.capacity} tokens, {taken} bytes",
                expected=f"at most {self._cache_bytes} bytes",
                fix="a shorter prompt, fewer new tokens, or more --kv-bytes",
            )

    def admit(self, needs: Needs, prompt: Sequence[int]) -> Session | None:
        """A session for a request, the idle one that holds most of its prompt; None while there is no
        room. Raises FirpError when the memory is not there.
        """
        together = [*self._needs.values(), needs]
        if len(together) > self._max_lanes:
            return None
        if self._cache_bytes is not None and self._bytes(together) > self._cache_bytes:
            return None
        self._make_room(together)
        self._fit(len(prompt))
        place = max(
            range(self.active, len(self._sessions)),
            key=lambda lane: self._sessions[lane].known_prefix(prompt),
        )
        self._swap(place, self.active)
        session = self._sessions[self.active]
        self._needs[session] = needs
        self._look_up(session, prompt)
        return session

    @property
    def _shares(self) -> bool:
        """Whether prefixes are kept: blocks are copied in host memory, by caches that grow."""
        return not self._limits and self._batch.memory.free_reads

    def _look_up(self, session: Session, prompt: Sequence[int]) -> None:
        """Take over a prefix that reaches further than what the lane holds of the prompt."""
        if not self._shares:
            return
        blocks = self._prefixes.longest(prompt[:-LEAST_PIECE], session.known_prefix(prompt))
        if blocks:
            session.take_over(prompt, blocks)

    def keep(self, session: Session) -> None:
        """Let others share what a session has computed."""
        if self._shares:
            self._prefixes.add(session.exact_tokens, session.copy_slots)

    def _make_room(self, together: Sequence[Needs]) -> None:
        size = self._size(together)
        there = self._batch.size if self._batch else None
        grows = there is not None and any(need > has for need, has in zip(size, there, strict=True))
        if grows and not self._needs and not self._batch.memory.free_reads:
            self.give_back()  # a device frees what a batch has taken all at once
            size, grows = BatchSize(*map(max, size, there)), False
        if self._batch is None:
            self._batch = self._make_batch(size)
        elif grows:
            self._batch.resize(BatchSize(*map(max, size, there)))
        self._sessions += [
            Session(self._batch, lane) for lane in range(len(self._sessions), self._batch.size.lanes)
        ]

    def _size(self, together: Sequence[Needs]) -> BatchSize:
        """One lane as long as requests come one by one, then all; at once all that graphs were built
        for.
        """
        k, limits = self.predictors, self._limits
        if limits:
            lanes = self._max_lanes
            decoded = lanes * max(1 + k, limits.max_rows)
            return BatchSize(limits.max_context, max(PREFILL_ROWS + k, decoded), decoded, lanes)
        lanes = 1 if len(together) == 1 else self._max_lanes
        rows = max(PREFILL_ROWS + k, lanes * max(need.tree_rows for need in together))
        return BatchSize(max(need.capacity for need in together), rows, rows, lanes)

    def pass_rows(self, sequences: int) -> int:
        """Rows that each of so many sequences may have in a pass, pseudo rows included."""
        return self._limits.max_rows if self._limits else self._batch.size.rows // sequences

    def start_decoding(self, session: Session) -> None:
        """A session's prompt is computed: it decodes with the others."""
        self.keep(session)
        self._swap(session.lane, self._decoding)
        self._decoding += 1

    def release(self, session: Session) -> None:
        """A session's request has ended: it is idle, and keeps its text."""
        self.keep(session)
        lane = session.lane
        if lane < self._decoding:
            self._decoding -= 1
            self._swap(lane, self._decoding)
        self._swap(session.lane, self.active - 1)
        del self._needs[session]
        if self._needs:
            self._fit(0)

    def _fit(self, tokens: int) -> None:
        """Let passes see no more slots than the texts that run need, and one of so many tokens: after a
        long text they would take as long as with it.
        """
        running = self._sessions[: self.active]
        self._batch.kv.shrink(max([tokens, *(session.length for session in running)]))
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
        if not self._needs and not self._limits:
            self._batch = None
            self._sessions = []


def default_bytes(available: int | None, limits: Any) -> tuple[int | None, int]:
    """Bytes for keys and values, and for prefixes, where nobody says how many: half and a quarter of
    what is free. Graphs that were built for a size have their own bound, and keep no prefixes.
    """
    if limits:
        return None, 0
    return (None, 0) if available is None else (available // 2, available // 4)
