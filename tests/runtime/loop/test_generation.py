"""Statistics add up, step by step and request by request."""

import pytest

from firp.runtime.loop.decode import Step, StepTimes
from firp.runtime.loop.generation import Chunk, Stats, collect

PREFILL = Step([4], 0, [], None, StepTimes({"lower": 20.0, "upper": 10.0}, 1.0, 35.0))
ACCEPTING = Step([5, 6, 7], 4, ["lookup", "firp"], None, StepTimes({"lower": 2.0, "upper": 1.0}, 0.5, 4.0))
BARE = Step([8], 1, [], "length", StepTimes({"lower": 1.5, "predictors": 0.5}, 0.25, 3.0))


def test_the_prefill_counts_in_no_decoding_figure():
    assert Stats(7).after(PREFILL) == Stats(7, prefill_ms=35.0)


def test_steps_add_up():
    stats = Stats(7).after(PREFILL).after(ACCEPTING).after(BARE)
    assert stats == Stats(
        prompt_tokens=7,
        steps=2,
        drafted_steps=1,
        decoded_tokens=4,
        accepted_by_drafter={"lookup": [1, 0], "firp": [0, 1]},
        prefill_ms=35.0,
        graph_ms={"lower": 3.5, "upper": 1.0, "predictors": 0.5},
        outside_ms=2.0,
    )
    assert stats.tokens_per_step == 2.0
    assert stats.decode_ms == pytest.approx(7.0)
    assert stats.ms_per_step == pytest.approx(3.5)
    assert stats.tokens_per_s == pytest.approx(4 / 7e-3)


def test_a_step_leaves_the_statistics_before_it_alone():
    before = Stats(7).after(ACCEPTING)
    before.after(ACCEPTING)
    assert before.accepted_by_depth == [1, 1]


def test_without_a_step_there_is_no_rate():
    assert (Stats(7).tokens_per_step, Stats(7).ms_per_step, Stats(7).tokens_per_s) == (1.0, 0.0, 0.0)


def test_requests_together_are_their_steps_together():
    left = Stats(7).after(PREFILL).after(ACCEPTING)
    right = Stats(3).after(PREFILL).after(BARE)
    together = Stats(10).after(ACCEPTING).after(BARE)
    total = Stats.total(iter([left, right]))
    assert total.prefill_ms == 70.0
    assert total.graph_ms == together.graph_ms
    assert total.accepted_by_depth == [1, 1]
    assert (total.prompt_tokens, total.steps, total.decoded_tokens) == (10, 2, 4)
    assert total.drafted_steps == 1
    assert total.outside_ms == together.outside_ms


def test_no_requests_cost_nothing():
    assert Stats.total([]) == Stats()


def test_a_stream_is_collected_as_it_is_shown():
    chunks = [
        Chunk([4], "", None, Stats(7)),
        Chunk([5, 6], "ab", None, Stats(7, 1)),
        Chunk([], "c", "stop", Stats(7, 1)),
    ]
    shown = []
    whole = collect(iter(chunks), shown.append)
    assert shown == chunks
    assert (whole.token_ids, whole.text, whole.finish_reason) == ([4, 5, 6], "abc", "stop")
    assert (whole.prompt_tokens, whole.stats) == (7, Stats(7, 1))


def test_without_a_tokenizer_there_is_no_text():
    assert collect([Chunk([4], None, None, Stats()), Chunk([], None, "length", Stats())]).text is None
