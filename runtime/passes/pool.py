"""Sessions for requests: made to measure where memory is cheap, alike and kept where graphs have
limits.

In: a bundle's loaded graphs, and what a request needs. Out: a `Session`, for as long as the request
decodes. What a kept session owns, its memory and its CUDA graphs, serves one request after the
other.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from firp.runtime.backends.interface import Backend, LoadedGraphs
from firp.runtime.bundle.format import Bundle
from firp.runtime.errors import FirpError
from firp.runtime.passes.batch import Batch
from firp.runtime.passes.pass_plan import PREFILL_ROWS
from firp.runtime.passes.pass_shape import BatchSize
from firp.runtime.passes.request import Needs
from firp.runtime.passes.session import Session


class SessionPool:
    """Sessions on the graphs of one bundle and backend."""

    def __init__(self, bundle: Bundle, backend: Backend, loaded: LoadedGraphs):
        self._bundle = bundle
        self._backend = backend
        self.graphs, self.limits, self._counters = loaded
        self._kept: list[Session] = []
        self._idle: list[Session] = []

    def make(self, capacity: int, rows: int) -> Session:
        """A session that holds `capacity` cached tokens and passes of `rows` rows, or more. Raises
        FirpError when the graphs, or the device's memory, do not.
        """
        decoded = rows
        limits = self.limits
        manifest = self._bundle.manifest
        if limits:
            self._check("context", capacity, limits.max_context)
            capacity = limits.max_context
            decoded = max(1 + manifest.num_predictors, limits.max_rows)
            rows = max(PREFILL_ROWS + manifest.num_predictors, limits.max_rows)
        memory = self._backend.memory()
        return Session(Batch(manifest, self.graphs, memory, BatchSize(capacity, rows, decoded)))

    def batch(self, size: BatchSize) -> Batch:
        """Memory for sequences that decode together. Raises FirpError when the device has none."""
        batch = Batch(self._bundle.manifest, self.graphs, self._backend.memory(), size)
        if self.limits:
            self._kept.append(Session(batch))
        return batch

    def check(self, needs: Needs) -> None:
        """Raises FirpError for a request that the graphs were not built to hold."""
        if self.limits:
            self._check("context", needs.capacity, self.limits.max_context)
            self._check("rows", needs.tree_rows, self.limits.max_rows)

    @contextmanager
    def lend(self, needs: Needs) -> Iterator[Session]:
        """A session for a while: made to measure, or one that is kept."""
        if not self.limits:
            yield self.make(needs.capacity, needs.rows)
            return
        try:
            session = self._idle.pop()
            # empty slots are in view of bucketed passes: nothing that is not finite may be left
            session.batch.kv.clear()
        except IndexError:
            session = self.make(needs.capacity, needs.rows)
            self._kept.append(session)
        try:
            yield session
        finally:
            self._idle.append(session)

    def _check(self, what: str, needed: int, limit: int) -> None:
        if needed > limit:
            build = f"firp build {self._bundle.path} --backend {self._backend.name}"
            raise FirpError(
                f"{what} larger than the engines hold",
                got=needed,
                expected=f"at most {limit}",
                fix=f"lower it, or {build} --max-{what} {needed} --force",
            )

    @property
    def kept_sessions(self) -> int:
        """Number of sessions that are kept."""
        return len(self._kept)

    @property
    def kept_bindings(self) -> int:
        """Number of bindings that the kept sessions hold."""
        return sum(session.batch.buffers.kept_bindings for session in self._kept)

    @property
    def graph_counts(self) -> dict[str, int] | None:
        """Counts of graph runs in all kept sessions so far (`Memory.counters`); None where nothing
        is counted.
        """
        names = self._counters
        return {
            name: sum(session.batch.memory.counters[name] for session in self._kept) for name in names
        } or None
