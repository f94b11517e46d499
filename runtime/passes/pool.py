"""Sessions for requests: made to measure where memory is cheap, alike and kept where engines have
limits.

In: a bundle's loaded graphs, and how much a request needs. Out: a `Session`, and the steps of a
request in one. What a kept session owns, its memory and its CUDA graphs, serves one request after
the other.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from firp.runtime.backends.cuda import GRAPH_RUNS
from firp.runtime.backends.interface import Backend, LoadedGraphs
from firp.runtime.bundle.format import Bundle
from firp.runtime.errors import FirpError
from firp.runtime.loop.decode import PREFILL_ROWS, Step
from firp.runtime.passes.session import Session


class SessionPool:
    def __init__(self, bundle: Bundle, backend: Backend, loaded: LoadedGraphs):
        self._bundle, self._backend, (self.graphs, self.limits) = bundle, backend, loaded
        self._all: list[Session] = []  # that are kept
        self._idle: list[Session] = []

    def make(self, capacity: int, rows: int) -> Session:
        """A session that holds `capacity` cached tokens and passes of `rows` rows, or more. Raises
        FirpError when the engines, or the device's memory, do not.
        """
        decoded, limits, manifest = rows, self.limits, self._bundle.manifest
        if limits:
            self._check("context", capacity, limits.max_context)
            capacity, decoded = limits.max_context, max(1 + manifest.num_predictors, limits.max_rows)
            rows = max(PREFILL_ROWS + manifest.num_predictors, limits.max_rows)
        return Session(manifest, self.graphs, self._backend.memory(), capacity, rows, decoded)

    @contextmanager
    def lend(self, capacity: int, rows: int) -> Iterator[Session]:
        """A session for a while: made to measure, or one that is kept."""
        if not self.limits:
            yield self.make(capacity, rows)
            return
        try:
            session = self._idle.pop()
            # empty slots are in view of bucketed passes: nothing that is not finite may be left in
            # them
            session.kv.clear()
        except IndexError:
            session = self.make(capacity, rows)
            self._all.append(session)
        try:
            yield session
        finally:
            self._idle.append(session)

    def steps(
        self, capacity: int, rows: int, tree_rows: int, run: Callable[[Session], Iterator[Step]]
    ) -> Iterator[Step]:
        """What `run` yields with a session of its own. tree_rows: of a decoding pass; rows: of any."""
        if self.limits:
            self._check("context", capacity, self.limits.max_context)
            self._check("rows", tree_rows, self.limits.max_rows)
        return self._run(capacity, rows, run)

    def _run(self, capacity: int, rows: int, run: Callable[[Session], Iterator[Step]]) -> Iterator[Step]:
        with self.lend(capacity, rows) as session:
            yield from run(session)

    def _check(self, what: str, needed: int, limit: int) -> None:
        if needed > limit:
            fix = f"lower it, or firp build {self._bundle.path} --backend {self._backend.name} --max-{what} {needed} --force"
            raise FirpError(
                f"{what} larger than the engines hold", got=needed, expected=f"at most {limit}", fix=fix
            )

    @property
    def graph_counts(self) -> dict[str, int] | None:
        """How graphs were run in all sessions so far (`CudaMemory.graph_counts`); None where there
        are no CUDA graphs.
        """
        if not self.limits:
            return None
        counts = [session.memory.graph_counts for session in self._all]
        return {name: sum(each[name] for each in counts) for name in GRAPH_RUNS}
