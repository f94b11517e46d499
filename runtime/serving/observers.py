"""Several observers of one engine, as one.

In: reports of the engine. Out: the same, to each.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from firp.runtime.observer import Observer, StepReport, Teller
from firp.runtime.serving.metrics import Metrics


def observers_of(metrics: Metrics) -> Observer:
    """What an engine that is served reports to: metrics, and spans where OpenTelemetry is installed."""
    if find_spec("opentelemetry") is None:
        return metrics
    from firp.runtime.serving.tracing import Tracing

    return Observers([metrics, Tracing()])


class Observers:
    """Several observers, told one after the other; what one of them raises keeps nothing from the next."""

    def __init__(self, observers: Sequence[Observer]):
        self._tellers = tuple(map(Teller, observers))

    def _tell(self, event: str, *about: Any) -> None:
        for tell in self._tellers:
            tell(event, *about)

    def submitted(self, request_id: str) -> None:
        self._tell("submitted", request_id)

    def started(self, request_id: str, queue_ms: float, reused_tokens: int, kv_bytes: int) -> None:
        self._tell("started", request_id, queue_ms, reused_tokens, kv_bytes)

    def first_token(self, request_id: str, ms: float) -> None:
        self._tell("first_token", request_id, ms)

    def tokens(self, request_id: str, count: int, ms_since_last: float) -> None:
        self._tell("tokens", request_id, count, ms_since_last)

    def step(self, report: StepReport) -> None:
        self._tell("step", report)

    def ended(self, request_id: str, reason: str, prompt_tokens: int, tokens: int, ms: float) -> None:
        self._tell("ended", request_id, reason, prompt_tokens, tokens, ms)
