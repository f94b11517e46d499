"""Metrics for Prometheus: what requests were, what steps did, what answers clients got.

In: reports of the engine, as its observer; statuses of answers. Out: the text that Prometheus reads.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from firp.runtime.observer import StepReport
from firp.runtime.scheduling.statistics import EngineStats

_WAIT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
_PATHS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/models"))


class Metrics:
    """An observer of one engine. Names begin with firp_, times are seconds."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self):
        self._registry = registry = CollectorRegistry()
        own = {"registry": registry}
        self._answers = Counter("firp_http_answers", "Answers to clients", ["path", "status"], **own)
        self._submitted = Counter("firp_requests_submitted", "Requests that the engine took", **own)
        self._ended = Counter("firp_requests", "Requests that ended, by reason", ["reason"], **own)
        self._prompt = Counter("firp_prompt_tokens", "Tokens of prompts of requests that ended", **own)
        self._reused = Counter("firp_prompt_tokens_reused", "Prompt tokens that a cache held", **own)
        self._tokens = Counter("firp_generated_tokens", "Tokens emitted", **own)
        self._steps = Counter("firp_steps", "Steps of the engine, by kind", ["kind"], **own)
        self._drafted = Counter(
            "firp_drafts", "Sequences that had a draft of a drafter at a depth", ["drafter", "depth"], **own
        )
        self._accepted = Counter(
            "firp_drafts_accepted", "Drafts of a drafter accepted at a depth", ["drafter", "depth"], **own
        )
        self._step_s = Counter("firp_step_seconds", "Seconds in steps", **own)
        self._graph_s = Counter("firp_graph_seconds", "Seconds in each graph", ["graph"], **own)
        self._batch = Histogram("firp_batch_size", "Sequences of a step", buckets=_BATCHES, **own)
        self._queue_s = Histogram("firp_queue_seconds", "Seconds in the queue", buckets=_WAIT_S, **own)
        self._first_s = Histogram(
            "firp_time_to_first_token_seconds", "Seconds to the first token", buckets=_WAIT_S, **own
        )
        self._between_s = Histogram(
            "firp_time_between_tokens_seconds",
            "Seconds from token to token, by those of one step",
            buckets=_BETWEEN_S,
            **own,
        )
        self._request_s = Histogram("firp_request_seconds", "Seconds of a request", buckets=_WAIT_S, **own)
        self._fresh: set[str] = set()  # requests whose first token has come, and no other

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)

    def watch(self, stats: Callable[[], EngineStats]) -> None:
        """Tell also what an engine holds at the moment when Prometheus asks."""
        self._registry.register(_Now(stats))

    def answered(self, path: str, status: int) -> None:
        """Count an answer to a client."""
        self._answers.labels(path if path in _PATHS else "other", str(status)).inc()

    def submitted(self, request_id: str) -> None:
        """Count a request that the engine took."""
        self._submitted.inc()

    def started(self, request_id: str, queue_ms: float, reused_tokens: int, kv_bytes: int) -> None:
        """Note how long a request waited, and what of its prompt was there."""
        self._queue_s.observe(queue_ms / 1e3)
        self._reused.inc(reused_tokens)

    def first_token(self, request_id: str, ms: float) -> None:
        """Note the time to the first token."""
        self._first_s.observe(ms / 1e3)
        self._fresh.add(request_id)

    def tokens(self, request_id: str, count: int, ms_since_last: float) -> None:
        """Note the time between tokens: of those that came together an equal share each."""
        if request_id in self._fresh:  # the first ones came after none
            self._fresh.remove(request_id)
            return
        for _ in range(count):
            self._between_s.observe(ms_since_last / count / 1e3)

    def step(self, report: StepReport) -> None:
        """Count a step, and what it did."""
        kind = "prompt" if not report.batch else "drafted" if report.rows > 1 else "plain"
        self._steps.labels(kind).inc()
        self._step_s.inc(report.total_ms / 1e3)
        self._tokens.inc(report.tokens)
        if report.batch:
            self._batch.observe(report.batch)
        for graph, ms in report.graph_ms.items():
            self._graph_s.labels(graph).inc(ms / 1e3)
        for counter, counts in ((self._drafted, report.drafted), (self._accepted, report.accepted)):
            for (drafter, depth), count in counts.items():
                counter.labels(drafter, str(depth)).inc(count)

    def ended(self, request_id: str, reason: str, prompt_tokens: int, tokens: int, ms: float) -> None:
        """Count the end of a request."""
        self._fresh.discard(request_id)
        self._ended.labels(reason).inc()
        self._prompt.inc(prompt_tokens)
        self._request_s.observe(ms / 1e3)


class _Now(Collector):
    """What an engine holds now, and what requests share of what was computed before."""

    def __init__(self, stats: Callable[[], EngineStats]):
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        now = self._stats()
        for name, text, value in (
            ("requests_active", "Requests that are decoded or prefilled", now.active),
            ("requests_waiting", "Requests in the queue", now.waiting),
            ("cache_bytes", "Bytes that running requests may need", now.cache_bytes),
            ("cache_held_bytes", "Bytes of caches, idle lanes included", now.held_bytes),
        ):
            yield GaugeMetricFamily(f"firp_{name}", text, value=value)
        found = now.prefixes
        for name, text, value in (
            ("lookups", "Prompts that were looked up among cached prefixes", found.lookups),
            ("hits", "Of them, those that found some", found.hits),
            ("tokens", "Tokens that were copied instead of computed", found.tokens),
            ("evictions", "Blocks that made room for others", found.evictions),
        ):
            yield CounterMetricFamily(f"firp_prefix_{name}", text, value=value)
        yield GaugeMetricFamily("firp_prefix_bytes", "Bytes of cached prefixes", value=found.bytes)
