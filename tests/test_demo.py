"""`firp demo`, and that the demo model learned something."""

import re

import pytest
from support.chat_bundles import add_chat

from firp.calib.commands import demo
from firp.calib.commands.demo import run_demo
from firp.calib.commands.fetch import NotToBeHadError
from firp.runtime.console.step_marks import StepMarks
from firp.runtime.engine import Engine
from firp.runtime.prompts import Prompt
from firp.runtime.sampling import SamplingParams


def test_the_demo_marks_steps_and_ends_with_the_comparison(demo_engine, capsys):
    prompt = Prompt("class", text="class Node:\n    def __repr__(self):\n        return")
    run_demo(demo_engine, [prompt], SamplingParams(24))
    out = capsys.readouterr().out
    plain, drafted = out.split("── class: drafted")
    marked = drafted.split("│")
    assert len(marked) > 8
    assert "│" not in plain.split("── class: plain")[1]
    rows = re.findall(r"│ (\w+)\s+│\s+(\d+) │\s+(\d+) │\s+([\d.]+)x │\s+([\d.]+) │\s+(\w+) │", out)
    assert [row[0] for row in rows] == ["class", "all"]
    for _, plain_rate, drafted_rate, speed, per_step, identical in rows:
        ratio = int(drafted_rate) / int(plain_rate)
        rounded = 0.005 + ratio * (0.5 / int(plain_rate) + 0.5 / int(drafted_rate))  # as they are shown
        assert float(speed) == pytest.approx(ratio, abs=1.1 * rounded)
        assert float(per_step) > 1.2
        assert identical == "yes"


def test_messages_are_shown_as_the_question_and_the_answer(demo_bundle, tmp_path, capsys):
    engine = Engine.load(add_chat(demo_bundle, tmp_path / "bundle"))
    run_demo(engine, [Prompt("question", messages=[{"role": "user", "content": "Why?"}])], SamplingParams(6))
    assert capsys.readouterr().out.count("Why?\n\n") == 2


def test_the_small_model_is_shown_where_no_other_can_be_had(monkeypatch, capsys):
    def cannot(*_):
        raise NotToBeHadError("cannot fetch it", got="no network")

    monkeypatch.setattr(demo, "fetch", cannot)
    shown = demo.llm_or_small()
    assert shown.model.name == "demo_model"
    assert "cannot fetch it | got no network. The small model is shown instead." in capsys.readouterr().err


def test_marks_separate_the_steps(capsys):
    marks = StepMarks()
    for text in ("ab", "", "c"):
        marks.write(text)
    assert capsys.readouterr().out == "ab│c│"


def test_the_demo_model_finishes_lines(demo_engine: Engine):
    def line(prompt):
        return demo_engine.generate(prompt, SamplingParams(16, stop=("\n",))).text

    assert line("import os\nimport sys\n\nif __name__ ==").strip() == "'__main__':"
    node = "class Node:\n    def __init__(self, name):\n        self.name = name\n\n"
    assert line(f"{node}    def __repr__(self):\n        return").startswith(" self.")
