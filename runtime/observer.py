"""What an engine tells whoever watches it: requests and steps, as they happen.

In: events of the engine's thread, and `submitted` of the caller's. Out: nothing; an observer must be
quick, and wait for no request. `Engine.close` returns at once there, and takes effect after the step.
What it raises is logged, and harms nobody.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

_log = logging.getLogger("firp.engine")


class Draft(NamedTuple):
    """A kind of drafts."""

    drafter: str  # "firp", "lookup" or "grammar"
    depth: int  # from 1 on


class StepReport(NamedTuple):
    """One step of the engine: one pass of the sequences that decode, or two, and a piece of a prompt."""

    batch: int  # B: sequences that decoded
    rows: int  # T: rows of each; 1: plain
    tokens: int  # emitted
    prompt_tokens: int  # computed of a prompt
    accepted: Mapping[Draft, int]  # drafts of all sequences
    drafted: Mapping[Draft, int]  # sequences that had such a draft
    graph_ms: Mapping[str, float]  # by graph
    total_ms: float
    active: int  # requests that decode or are prefilled
    waiting: int  # requests in the queue
    cache_bytes: int  # that keys and values of those that are active may need


class Observer(Protocol):
    """Events by request id; milliseconds count from submission unless said otherwise. kv_bytes: reserved
    for keys and values of the request.
    """

    def submitted(self, request_id: str) -> None: ...

    def started(self, request_id: str, queue_ms: float, reused_tokens: int, kv_bytes: int) -> None: ...

    def first_token(self, request_id: str, ms: float) -> None: ...

    def tokens(self, request_id: str, count: int, ms_since_last: float) -> None: ...

    def step(self, report: StepReport) -> None: ...

    def ended(self, request_id: str, reason: str, prompt_tokens: int, tokens: int, ms: float) -> None: ...


class NullObserver:
    """Listens to nothing."""

    def submitted(self, request_id: str) -> None:
        return

    def started(self, request_id: str, queue_ms: float, reused_tokens: int, kv_bytes: int) -> None:
        return

    def first_token(self, request_id: str, ms: float) -> None:
        return

    def tokens(self, request_id: str, count: int, ms_since_last: float) -> None:
        return

    def step(self, report: StepReport) -> None:
        return

    def ended(self, request_id: str, reason: str, prompt_tokens: int, tokens: int, ms: float) -> None:
        return


class Teller:
    """Tells one observer. What it raises is logged, once for each event, and ends there."""

    def __init__(self, observer: Observer):
        self._observer = observer
        self._failed: set[str] = set()

    def __call__(self, event: str, *about: Any) -> None:
        try:
            getattr(self._observer, event)(*about)
        except Exception:
            if event not in self._failed:
                self._failed.add(event)
                line = "the observer %s raised at %s; further errors there are not logged"
                _log.exception(line, type(self._observer).__name__, event)
