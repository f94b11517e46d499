"""Sums of what an engine has done: in a step, and since it was loaded.

In: events of the engine's thread. Out: `EngineStats`; every event goes on to the observer that the
application gave.
"""

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from firp.runtime.observer import Draft, Observer, StepReport, Teller
from firp.runtime.passes.batch import COPIES
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.scheduling.prefixes import PrefixStats

_log = logging.getLogger("firp.engine")


@dataclass(frozen=True)
class EngineStats:
    """A moment of an engine: totals since it was loaded, and what it holds now."""

    submitted: int = 0  # requests
    ended: dict[str, int] = field(default_factory=dict)  # by finish reason; "error": those that failed
    prompt_tokens: int = 0  # computed
    reused_tokens: int = 0  # of prompts, that a cache held
    tokens: int = 0  # emitted
    steps: int = 0
    # drafter -> depth, from 1 on -> drafts that were accepted, and sequences that had one in a step
    accepted: dict[str, dict[int, int]] = field(default_factory=dict)
    drafted: dict[str, dict[int, int]] = field(default_factory=dict)
    graph_ms: dict[str, float] = field(default_factory=dict)
    active: int = 0  # requests that run now
    waiting: int = 0  # requests in the queue now
    cache_bytes: int = 0  # that keys and values of requests may need, which run now
    held_bytes: int = 0  # of memory for keys and values, that of idle lanes included
    prefixes: PrefixStats = field(default_factory=PrefixStats)  # what requests share


class Totals:
    """An observer that adds up, and passes on. `open`: ids of requests that have not ended."""

    def __init__(self, observer: Observer):
        self.open: set[str] = set()
        self._tell = Teller(observer)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._accepted: Counter[Draft] = Counter()
        self._drafted: Counter[Draft] = Counter()
        self._graph_ms: Counter[str] = Counter()

    def stats(
        self, active: int, waiting: int, cache_bytes: int, held_bytes: int, prefixes: PrefixStats
    ) -> EngineStats:
        """What has been added up, and what is now."""
        with self._lock:
            return EngineStats(
                ended=dict(self._ended),
                accepted=_by_drafter(self._accepted),
                drafted=_by_drafter(self._drafted),
                graph_ms=dict(self._graph_ms),
                active=active,
                waiting=waiting,
                cache_bytes=cache_bytes,
                held_bytes=held_bytes,
                prefixes=prefixes,
                **self._counts,
            )

    def submitted(self, request_id: str) -> None:
        with self._lock:
            self._counts["submitted"] += 1
            self.open.add(request_id)
        self._tell("submitted", request_id)

    def started(self, request_id: str, queue_ms: float, reused_tokens: int, kv_bytes: int) -> None:
        with self._lock:
            self._counts["reused_tokens"] += reused_tokens
        line = "%s started after %.1f ms: %d tokens reused, %d bytes reserved"
        _log.info(line, request_id, queue_ms, reused_tokens, kv_bytes)
        self._tell("started", request_id, queue_ms, reused_tokens, kv_bytes)

    def first_token(self, request_id: str, ms: float) -> None:
        self._tell("first_token", request_id, ms)

    def tokens(self, request_id: str, count: int, ms_since_last: float) -> None:
        with self._lock:
            self._counts["tokens"] += count
        self._tell("tokens", request_id, count, ms_since_last)

    def step(self, report: StepReport) -> None:
        with self._lock:
            self._counts.update(prompt_tokens=report.prompt_tokens, steps=1)
            self._accepted.update(report.accepted)
            self._drafted.update(report.drafted)
            self._graph_ms.update(report.graph_ms)
        self._tell("step", report)

    def ended(self, request_id: str, reason: str, prompt_tokens: int, tokens: int, ms: float) -> None:
        with self._lock:
            self._ended[reason] += 1
            self.open.discard(request_id)
        line = "%s ended (%s): %d prompt tokens, %d new, %.1f ms"
        _log.info(line, request_id, reason, prompt_tokens, tokens, ms)
        self._tell("ended", request_id, reason, prompt_tokens, tokens, ms)


class StepCounts:
    """Counts of one step."""

    def __init__(self):
        self.rows = 0
        self.tokens = 0
        self.prompt_tokens = 0
        self.accepted: Counter[Draft] = Counter()
        self.drafted: Counter[Draft] = Counter()
        self.graph_ms: Counter[str] = Counter()

    def add_times(self, pass_ms: Mapping[str, float]) -> None:
        """Add the times of a pass, by graph."""
        self.graph_ms.update({name: ms for name, ms in pass_ms.items() if name != COPIES})

    def count(self, plan: PassPlan, tokens: int, accepted: Sequence[str]) -> None:
        """Add what one sequence got of a pass. accepted: drafters of its drafts, by depth."""
        self.tokens += tokens
        if not plan.prompt:
            tree = plan.tree
            self.rows = max(self.rows, len(tree.tokens))
            self.drafted.update(set(map(Draft, tree.drafters[1:], tree.depths[1:])))
            self.accepted.update(map(Draft, accepted, range(1, 1 + len(accepted))))

    def report(
        self, batch: int, total_ms: float, active: int, waiting: int, cache_bytes: int
    ) -> StepReport | None:
        """The step as an observer is told of it; None where it did nothing."""
        if not (self.tokens or self.prompt_tokens):
            return None
        return StepReport(
            batch,
            self.rows,
            self.tokens,
            self.prompt_tokens,
            self.accepted,
            self.drafted,
            self.graph_ms,
            total_ms,
            active,
            waiting,
            cache_bytes,
        )


def _by_drafter(counts: Counter[Draft]) -> dict[str, dict[int, int]]:
    found: dict[str, dict[int, int]] = {}
    for (drafter, depth), count in sorted(counts.items()):
        found.setdefault(drafter, {})[depth] = count
    return found
