"""Metrics and spans: what the engine reports comes out as counters, histograms and spans."""

import re
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from firp.runtime.engine import Engine
from firp.runtime.observer import Draft, StepReport
from firp.runtime.sampling import SamplingParams
from firp.runtime.scheduling.prefixes import PrefixStats
from firp.runtime.scheduling.statistics import EngineStats
from firp.runtime.serving.metrics import Metrics
from firp.runtime.serving.observers import Observers
from firp.runtime.serving.tracing import Tracing
from firp.runtime.trees.tree_config import DRAFTERS, TreeConfig

DRAFTS = (Draft("grammar", 1), Draft("lookup", 2), Draft("firp", 3))


def report(batch, rows, tokens, prompt_tokens=0, accepted=None, drafted=None, graph_ms=None):
    accepted, drafted, graph_ms = accepted or {}, drafted or {}, graph_ms or {}
    return StepReport(batch, rows, tokens, prompt_tokens, accepted, drafted, graph_ms, 8.0, 2, 1, 4096)


def tell(observer):
    """Two requests: one is served, the other is given up in the queue."""
    observer.submitted("a")
    observer.submitted("b")
    observer.started("a", 20.0, 64, 4096)
    observer.step(report(0, 0, 1, prompt_tokens=30, graph_ms={"lower": 5.0}))
    observer.first_token("a", 40.0)
    observer.tokens("a", 1, 40.0)
    accepted, drafted = dict.fromkeys(DRAFTS[:2], 1), dict.fromkeys(DRAFTS, 1)
    observer.step(report(1, 4, 3, accepted=accepted, drafted=drafted, graph_ms={"lower": 2.0}))
    observer.tokens("a", 3, 30.0)
    observer.step(report(1, 1, 1))
    observer.ended("b", "deadline", 10, 0, 50.0)


def value(metrics, name):
    found = re.search(rf"^{re.escape(name)} (\S+)$", metrics.text().decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


@pytest.fixture
def metrics():
    made = Metrics()
    tell(made)
    return made


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("firp_requests_submitted_total", 2),
        ('firp_requests_total{reason="deadline"}', 1),
        ("firp_prompt_tokens_reused_total", 64),
        ("firp_generated_tokens_total", 5),
        ('firp_steps_total{kind="prompt"}', 1),
        ('firp_steps_total{kind="drafted"}', 1),
        ('firp_steps_total{kind="plain"}', 1),
        ('firp_drafts_total{depth="3",drafter="firp"}', 1),
        ('firp_drafts_accepted_total{depth="2",drafter="lookup"}', 1),
        ('firp_graph_seconds_total{graph="lower"}', 0.007),
        ("firp_step_seconds_total", 0.024),
        ("firp_batch_size_count", 2),
        ("firp_queue_seconds_sum", 0.02),
        ("firp_time_to_first_token_seconds_sum", 0.04),
        ("firp_time_between_tokens_seconds_count", 3),
        ("firp_time_between_tokens_seconds_sum", 0.03),
    ],
)
def test_reports_are_counted(name, expected, metrics):
    assert value(metrics, name) == pytest.approx(expected)


def test_prompts_are_counted_at_their_ends(metrics):
    metrics.ended("a", "stop", 30, 5, 90.0)
    assert value(metrics, "firp_prompt_tokens_total") == 40


def test_paths_that_nobody_has_are_one_label(metrics):
    for path in ("/v1/x", "/v1/y", "/v1/completions"):
        metrics.answered(path, 404)
    assert value(metrics, 'firp_http_answers_total{path="other",status="404"}') == 2


def test_accepted_drafts_are_those_that_requests_tell(demo_bundle):
    metrics = Metrics()
    tree = TreeConfig("dynamic", 8, 2, drafters=DRAFTERS)
    prompts = ("def add(a, b):", "import numpy as np\nimport numpy as np\nimport", "class A:")
    with Engine.load(demo_bundle, observer=metrics) as engine:
        handles = [engine.submit(text, SamplingParams(24, ignore_eos=True), tree=tree) for text in prompts]
        stats = [handle.result(60).stats for handle in handles]
    expected = Counter()
    for one in stats:
        for drafter, counts in one.accepted_by_drafter.items():
            expected.update({(drafter, depth): count for depth, count in enumerate(counts, 1)})
    assert {drafter for drafter, _ in +expected} == set(DRAFTERS)
    for (drafter, depth), count in (+expected).items():
        labels = f'{{depth="{depth}",drafter="{drafter}"}}'
        assert value(metrics, f"firp_drafts_accepted_total{labels}") == count
        assert value(metrics, f"firp_drafts_total{labels}") >= count
    assert sum(expected.values()) == sum(sum(one.accepted_by_depth) for one in stats)


class Provider:
    """Stands for a provider of OpenTelemetry; keeps spans."""

    def __init__(self):
        self.spans = []

    def get_tracer(self, *_, **__):
        return self

    def start_span(self, name, attributes):
        self.spans.append(Span(name, attributes))
        return self.spans[-1]


class Span:
    def __init__(self, name, attributes):
        self.name, self.attributes, self.events, self.over = name, dict(attributes), [], False

    def add_event(self, name, attributes):
        self.events.append((name, attributes))

    def set_attribute(self, name, value):
        self.attributes[name] = value

    def end(self):
        self.over = True


def test_every_request_is_a_span_whatever_another_observer_raises():
    provider = Provider()
    metrics = Metrics()
    tell(Observers([object(), metrics, Tracing(provider)]))
    a, b = provider.spans
    assert (a.attributes["firp.id"], a.over) == ("a", False)
    assert [name for name, _ in a.events] == ["started", "first_token"]
    assert a.events[0][1] == {"firp.queue_ms": 20.0, "firp.reused_tokens": 64, "firp.kv_bytes": 4096}
    assert b.over
    assert b.attributes["gen_ai.response.finish_reasons"] == ["deadline"]
    assert b.attributes["gen_ai.usage.input_tokens"] == 10
    assert value(metrics, "firp_generated_tokens_total") == 5


def test_what_it_holds_and_what_prefixes_saved_is_asked_of_the_engine():
    metrics = Metrics()
    prefixes = PrefixStats(lookups=7, hits=3, tokens=192, bytes=4096, evictions=1)
    found = EngineStats(active=2, waiting=5, cache_bytes=8192, held_bytes=16384, prefixes=prefixes)
    metrics.watch(lambda: found)
    assert value(metrics, "firp_requests_active") == 2
    assert value(metrics, "firp_requests_waiting") == 5
    assert value(metrics, "firp_cache_bytes") == 8192
    assert value(metrics, "firp_prefix_lookups_total") == 7
    assert value(metrics, "firp_prefix_hits_total") == 3
    assert value(metrics, "firp_prefix_tokens_total") == 192
    assert value(metrics, "firp_prefix_bytes") == 4096
    assert value(metrics, "firp_cache_held_bytes") == 16384


def test_the_table_of_metrics_is_complete(metrics):
    """Names and labels, as docs/serving.md has them and as Prometheus reads them."""
    metrics.watch(EngineStats)
    metrics.answered("/v1/completions", 200)
    shown = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        if not family.name.endswith("_created"):
            name = family.name + "_total" if family.type == "counter" else family.name
            labels = {label for sample in family.samples for label in sample.labels}
            shown[name] = labels - ({"le"} if family.type == "histogram" else set())
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text("utf-8")
    rows = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `firp_"))
    found = re.findall(r"`(firp_\w+)(?:\{([\w,]+)\})?`", rows)
    assert {name: set(filter(None, labels.split(","))) for name, labels in found} == shown
