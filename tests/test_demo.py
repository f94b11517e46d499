"""`firp demo`, and that the demo model learned something."""

import re

from firp.calib.commands.demo import StepMarks, run_demo
from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams


def test_the_demo_marks_steps_and_ends_with_the_comparison(demo_engine, capsys):
    run_demo(demo_engine, ["class Node:\n    def __repr__(self):\n        return"], SamplingParams(24))
    out = capsys.readouterr().out
    plain, drafted = out.split("── drafted")
    marked = drafted.split("│")
    assert len(marked) > 8
    assert "│" not in plain.split("── plain")[1]
    rows = {
        row[0]: row[1:]
        for row in re.findall(r"│ (plain|drafted)\s+│\s+(\d+) │\s+(\d+) │\s+([\d.]+) │\s+(\w*) │", out)
    }
    assert rows["plain"][1] == "23"
    assert float(rows["plain"][2]) == 1
    assert int(rows["drafted"][1]) < 23
    assert float(rows["drafted"][2]) > 1.2
    assert rows["drafted"][3] == "yes"


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
