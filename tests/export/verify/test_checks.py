"""What verification says while it runs, and what it leaves behind."""

import json
import math

from firp.export.verify.checks import verify
from firp.export.verify.report import Check, Report, Tie
from firp.runtime.tuning.parity import Difference


def test_progress_names_each_step_and_how_far_it_is(family_bundle):
    model, bundle = family_bundle("llama")
    seen = []
    verify(bundle, model, lambda *stage: seen.append(stage))
    assert seen == [
        ("loading the bundle", 0, None),
        ("loading the Hugging Face model", 0, None),
        ("verifying: values against float64", 0, 3),
        ("verifying: plain = generate", 1, 3),
        ("verifying: drafted against plain decoding", 2, 3),
    ]


def test_near_ties_are_those_of_the_checks():
    tie = Tie("chain", Difference(1, 2, 0.5, True))
    report = Report([Check("first", True, 0, 0), Check("near ties, chain", True, 1, 1, (tie,))])
    assert report.near_ties == [tie]
    assert report.passed


def test_the_json_of_a_report():
    tie = Tie("chain", Difference(1, 2, 0.5, True))
    report = Report([Check("a", True, 0.5, 4.0, (tie,)), Check("b", False, math.inf, 4.0)])
    assert json.loads(json.dumps(report.to_json())) == {
        "checks": [
            {"name": "a", "passed": True, "value": 0.5, "limit": 4.0},
            {"name": "b", "passed": False, "value": math.inf, "limit": 4.0},
        ],
        "passed": False,
        "near_ties": [{"tree": "chain", "prompt": 1, "position": 2, "margin": 0.5, "near_tie": True}],
    }
