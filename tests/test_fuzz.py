"""Hostile bundles, a small and seeded set: one line each, or exactly the right tokens."""

import sys
import time

import pytest

COUNT = 120


@pytest.fixture
def fuzz_bundles(pytestconfig, monkeypatch):
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "benchmarks")
    import fuzz_bundles

    return fuzz_bundles


def test_every_mutant_ends_in_one_line_or_decodes_the_right_tokens(fuzz_bundles, family_bundle):
    failures = []
    outcomes = fuzz_bundles.fuzz(family_bundle("llama")[1], COUNT, 7, failures.append)
    assert failures == []
    assert outcomes.total() == COUNT
    named = {name: sum(n for (_, each), n in outcomes.items() if each == name) for _, name in outcomes}
    assert named["one line"] > COUNT / 2
    assert named["the right tokens"] > 3


@pytest.mark.parametrize(
    ("found", "good"),
    [
        ({"error": "bad size | got 3"}, True),
        ({"error": "two\nlines"}, False),
        ({"error": "x" * 5000}, False),
        ({"foreign": "ValueError: x"}, False),
        ({"tokens": [1, 2], "lossless": True}, True),
        ({"tokens": [1, 3], "lossless": True}, False),
        ({"tokens": [1, 2], "lossless": False}, False),
    ],
)
def test_an_outcome_is_judged(found, good, fuzz_bundles):
    mutant = fuzz_bundles.Mutant("firp.json", "a change", other_tokens=False)
    assert fuzz_bundles.judge(found, mutant, [1, 2])[0] == good


def test_other_weights_may_say_something_else(fuzz_bundles):
    mutant = fuzz_bundles.Mutant("model.safetensors", "a change", other_tokens=True)
    assert fuzz_bundles.judge({"tokens": [3], "lossless": True}, mutant, [1, 2])[0]


def test_what_hangs_or_dies_is_a_failure_and_the_next_one_is_judged(fuzz_bundles, monkeypatch, tmp_path):
    def hangs_or_dies(bundle):
        if bundle.name == "dies":
            sys.exit(3)
        time.sleep(60 if bundle.name == "hangs" else 0)
        return {"tokens": [], "lossless": True}

    monkeypatch.setattr(fuzz_bundles, "decode", hangs_or_dies)
    monkeypatch.setattr(fuzz_bundles, "SECONDS", 1)
    worker = fuzz_bundles.Worker()
    assert worker.decode(tmp_path / "hangs") == {"foreign": "more than 1 s"}
    assert "SystemExit" in worker.decode(tmp_path / "dies")["foreign"]
    assert worker.decode(tmp_path / "fine") == {"tokens": [], "lossless": True}
    worker.close()
