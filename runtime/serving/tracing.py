"""Spans for OpenTelemetry, one for each request of the engine.

In: reports of the engine, as its observer. Out: spans of the provider that the process has set up,
children of the span in whose context the request was submitted.
"""

from opentelemetry import trace

from firp.runtime.observer import NullObserver


class Tracing(NullObserver):
    """An observer of one engine. provider: None for the process's own."""

    def __init__(self, provider: trace.TracerProvider | None = None):
        self._tracer = trace.get_tracer("firp", tracer_provider=provider)
        self._spans: dict[str, trace.Span] = {}

    def submitted(self, request_id: str) -> None:
        """Begin a span, in the context of the caller."""
        self._spans[request_id] = self._tracer.start_span("firp.request", attributes={"firp.id": request_id})

    def started(self, request_id: str, queue_ms: float, reused_tokens: int, kv_bytes: int) -> None:
        """Note that a request left the queue."""
        if span := self._spans.get(request_id):
            found = {"queue_ms": queue_ms, "reused_tokens": reused_tokens, "kv_bytes": kv_bytes}
            span.add_event("started", {f"firp.{name}": value for name, value in found.items()})

    def first_token(self, request_id: str, ms: float) -> None:
        """Note the first token."""
        if span := self._spans.get(request_id):
            span.add_event("first_token", {"firp.ms": ms})

    def ended(self, request_id: str, reason: str, prompt_tokens: int, tokens: int, ms: float) -> None:
        """End the span, with what the request took."""
        if span := self._spans.pop(request_id, None):
            span.set_attribute("gen_ai.response.finish_reasons", [reason])
            span.set_attribute("gen_ai.usage.input_tokens", prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", tokens)
            span.end()
