"""The report of a calibration: what is in it, what it leaves out, that it needs nothing else."""

import base64
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest

from firp.calib.report.findings import REPORT_ROWS, Findings, LayerFindings, MethodFindings
from firp.calib.report.pictures import draw_pictures
from firp.calib.report.report import write_report
from firp.export.bundle.predictor_dir import Accuracy
from firp.runtime.bundle.calibration import Choice, LatencyTable
from firp.runtime.trees.tree_config import TreeConfig

GREEDY, SAMPLED, TEXT = (
    (1.62, 2.22, 2.46, 2.57, 2.63),
    (1.4, 1.72, 1.85, 1.92, 1.97),
    (1.35, 1.6, 1.69, 1.77, 1.81),
)
CORRECTED = {"greedy": GREEDY, "sampled": SAMPLED, "text": TEXT}
INDEPENDENT = {
    "greedy": (1.44, 1.85, 1.96, 2.07, 2.11),
    "sampled": (1.3, 1.58, 1.66, 1.71, 1.75),
    "text": (1.27, 1.47, 1.52, 1.56, 1.6),
}
CURVE = tuple((1 + 50 * i, (3.0 - 0.1 * i, 4.0 - 0.1 * i, 4.5 - 0.1 * i)) for i in range(10))
ACCURACY = Accuracy((0.621, 0.412, 0.303), (0.76, 0.55, 0.46), (0.82, 0.61, 0.517), (0.89, 0.7, 0.608), 6400)
FIRP = MethodFindings("firp", ACCURACY, CURVE, INDEPENDENT, CORRECTED)
MEDUSA = MethodFindings(
    "medusa", replace(ACCURACY, top1=(0.484, 0.29, 0.21)), CURVE, INDEPENDENT, INDEPENDENT
)
LOOKUP = MethodFindings("prompt lookup", None, (), {"greedy": (1.31, 1.38, 1.39, 1.39, 1.39)}, {})
LATENCY = LatencyTable(
    "a test CPU, 2 threads",
    6,
    8,
    (256,),
    (1, 4, 16),
    ((1.101, 1.3, 2.3),),
    ((0.9, 1.1, 2.207),),
    0.11,
    0.05,
    0.31,
)
CHOICE = Choice(TreeConfig("dynamic", 6, 2), True, "greedy", 1.834, 1.312, 512, LATENCY)
ALL_PICTURES = {"speedup", "tokens_per_step", "layers", "accuracy", "acceptance", "similarity", "loss"}
FULL = Findings(
    model_name="demo",
    num_hidden_layers=8,
    prediction_layer=6,
    num_predictors=3,
    tokens=1234567,
    steps=2400,
    minutes=10.03,
    methods=(FIRP, MEDUSA, replace(MEDUSA, method="early exit"), LOOKUP),
    static={"greedy": (1.57, 2.11, 2.33, 2.44, 2.49)},
    acceptance=dict.fromkeys(CORRECTED, ((0.5, 0.2, 0.1), (0.4, 0.2, 0.1), (0.3, 0.1, 0.1))),
    similarity=((0.7, 0.8, 0.9), (0.6, 0.7, 0.8), (0.5, 0.6, 0.7)),
    layers=tuple(LayerFindings(t, (0.6, 0.5 - 0.02 * t, 0.3), 1.9, 1.1 + 0.02 * t) for t in (2, 4, 6)),
    speedups=((2, 1.121), (6, 1.312), (16, 0.873)),
    choice=CHOICE,
)
SMALLEST = Findings(
    "m",
    2,
    1,
    1,
    500,
    1,
    0.01,
    (MethodFindings("firp", Accuracy((0.0,), (0.0,), (0.0,), (0.0,), 4), (), {}, {}),),
    {},
    {},
    ((0.4, 0.5),),
    (),
    (),
    None,
)


class Page(HTMLParser):
    """Table rows, text, and every resource that the page names."""

    def __init__(self, html: str):
        super().__init__()
        self.rows, self.text, self.tags, self.resources = [], "", set(), []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.resources += [
            value for name, value in attributes if name in ("src", "href", "srcset", "data", "poster")
        ]
        if tag == "tr":
            self.rows.append(())
        if tag in ("td", "th"):
            self.rows[-1] += ("",)

    def handle_data(self, data):
        self.text += data
        if self.rows and self.lasttag in ("td", "th") and data.strip():
            self.rows[-1] = (*self.rows[-1][:-1], data)


def written(folder, findings: Findings) -> tuple[str, Page]:
    write_report(folder, findings)
    html = (folder / "report.html").read_text("utf-8")
    return html, Page(html)


@pytest.fixture
def no_pictures(monkeypatch):
    """For tests of the text: drawing takes a second or two."""
    monkeypatch.setattr("firp.calib.report.report.draw_pictures", lambda findings: {})


def pictures_in(folder) -> set[str]:
    return {file.stem for file in folder.glob("*.png")}


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        (FULL, ALL_PICTURES),
        (replace(FULL, layers=()), ALL_PICTURES - {"layers"}),
        (replace(FULL, speedups=(), choice=None), ALL_PICTURES - {"speedup"}),
        (replace(FULL, methods=(replace(FIRP, curve=()), LOOKUP)), ALL_PICTURES - {"loss"}),
        (SMALLEST, {"accuracy", "similarity"}),
    ],
    ids=["full", "no layers", "no latency", "no curve", "smallest"],
)
def test_only_pictures_with_data_appear_and_the_page_holds_them_all(findings, expected, tmp_path):
    html, page = written(tmp_path, findings)
    assert pictures_in(tmp_path) == expected
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.png" for name in expected} | {
        "report.json",
        "report.html",
    }
    embedded = [
        base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
        for source in page.resources
    ]
    assert sorted(embedded) == sorted(file.read_bytes() for file in tmp_path.glob("*.png"))
    assert html.count("<figcaption>") == len(expected)


def test_page_needs_no_other_resource(tmp_path):
    html, page = written(tmp_path, FULL)
    rest = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)
    assert page.resources
    assert all(resource.startswith("data:image/png;base64,") for resource in page.resources)
    assert not re.search(r"https?:|url\(|@import", rest)
    assert not page.tags & {
        "script",
        "link",
        "iframe",
        "object",
    }


def test_tables_hold_the_numbers(no_pictures, tmp_path):
    _, page = written(tmp_path, FULL)
    for row in [
        ("method", "text", "guesses", *map(str, REPORT_ROWS)),
        ("FIRP", "greedy", "path correction", "1.62", "2.22", "2.46", "2.57", "2.63"),
        ("FIRP", "sampled at temperature 0.8", "independent", "1.30", "1.58", "1.66", "1.71", "1.75"),
        ("prompt lookup", "greedy", "independent", "1.31", "1.38", "1.39", "1.39", "1.39"),
        ("greedy", "1.57", "2.11", "2.33", "2.44", "2.49"),
        ("6", "1.312"),
        ("16", "2.300", "2.207"),
        ("", "layer 2", "layer 4", "layer 6 (chosen)"),
        ("top-1, offset 2 (%)", "46.0", "42.0", "38.0"),
        ("tokens per step", "1.90", "1.90", "1.90"),
        ("speedup (×)", "1.140", "1.180", "1.220"),
        ("FIRP", "top-1", "62.1", "41.2", "30.3"),
        ("FIRP", "top-3", "76.0", "55.0", "46.0"),
        ("FIRP", "top-5", "82.0", "61.0", "51.7"),
        ("FIRP", "top-10", "89.0", "70.0", "60.8"),
        ("Medusa", "top-1", "48.4", "29.0", "21.0"),
    ]:
        assert row in page.rows, row
    assert not [
        row
        for row in page.rows
        if row[:1] == ("prompt lookup",) and ("path correction" in row or "top-1" in row)
    ]
    assert not [
        row for row in Page(written(tmp_path, replace(FULL, choice=None))[0]).rows if "lower (ms)" in row
    ]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (
            CHOICE,
            "a dynamic tree of 6 rows with drafts from 2 of them is expected to be fastest, "
            "with 1.83 tokens per step at 1.312",
        ),
        (
            replace(CHOICE, drafts=False, speedup=0.91),
            "plain decoding is expected to be fastest: the best tree",
        ),
        (replace(CHOICE, drafts=False, speedup=1.01), "less than the factor of 1.02"),
        (
            replace(CHOICE, tree=TreeConfig("dynamic", 8, 0, 2)),
            "tree of 8 rows and depth 2 with drafts in a pass of their own",
        ),
        (None, "No latency table"),
    ],
    ids=["drafts", "slower", "too close", "draft pass", "none"],
)
def test_summary_says_what_was_chosen(choice, expected, no_pictures, tmp_path):
    _, page = written(tmp_path, replace(FULL, choice=choice))
    assert expected in page.text
    assert "layer 6 of 8" in page.text
    assert "2,400 steps in 10.03 minutes, on data of 1,234,567 tokens" in page.text


def test_names_are_text_wherever_they_come_from(tmp_path):
    name, device = "<script>alert('x')</script> & \"$x^$\" \N{SNOWMAN}", "<i>CPU</i>"
    html, page = written(
        tmp_path,
        replace(FULL, model_name=name, choice=replace(CHOICE, latency=replace(LATENCY, device=device))),
    )
    assert not page.tags & {"script", "i"}
    assert "<script>" not in html
    assert page.text.count(name) >= 3  # title, heading, summary
    assert f"On {device} (text: greedy)" in page.text
    assert f"Latency on {device}" in page.text


@pytest.mark.parametrize("findings", [FULL, SMALLEST], ids=["full", "smallest"])
def test_json_reads_back_to_the_same_findings(findings, no_pictures, tmp_path):
    write_report(tmp_path, findings)
    data = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert set(data) == set(Findings.__dataclass_fields__)
    assert data == as_lists(asdict(findings))


def as_lists(value):
    if isinstance(value, dict):
        return {name: as_lists(item) for name, item in value.items()}
    return [as_lists(item) for item in value] if isinstance(value, tuple | list) else value


def test_findings_with_gaps(tmp_path):
    """One point of a curve, a text that one method lacks, no path correction, accuracy of nothing."""
    gaps = replace(FIRP, curve=CURVE[:1], independent={"text": TEXT}, corrected={})
    empty = replace(MEDUSA, accuracy=Accuracy((), (), (), (), 0), curve=())
    findings = replace(
        FULL,
        methods=(gaps, empty),
        static={},
        acceptance={"text": ((0.0, 0.0),)},
        speedups=((3, 0.8),),
        choice=None,
    )
    _, page = written(tmp_path, findings)
    assert pictures_in(tmp_path) == ALL_PICTURES
    assert ("FIRP", "held-out text", "independent", "1.35", "1.60", "1.69", "1.77", "1.81") in page.rows
    assert not [row for row in page.rows if row[:3] == ("FIRP", "greedy", "independent")]


@pytest.mark.parametrize("offsets", [1, 16])
def test_any_number_of_predictors(offsets, tmp_path):
    shares = tuple(0.9**j for j in range(1, offsets + 1))
    one = MethodFindings(
        "firp",
        Accuracy(shares, shares, shares, shares, 9),
        ((1, shares), (2, shares)),
        INDEPENDENT,
        CORRECTED,
    )
    findings = replace(
        FULL,
        num_predictors=offsets,
        methods=(one,),
        similarity=tuple((share,) * 3 for share in shares),
        acceptance={"greedy": tuple((share, 0.0) for share in shares)},
        layers=(LayerFindings(6, shares, 1.5, 1.1),),
    )
    _, page = written(tmp_path, findings)
    assert pictures_in(tmp_path) == ALL_PICTURES
    assert ("FIRP", "top-1", *(f"{100 * share:.1f}" for share in shares)) in page.rows


def test_pictures_change_with_what_they_show_and_with_nothing_else():
    one, other = (
        draw_pictures(FULL),
        draw_pictures(replace(FULL, static={}, choice=replace(CHOICE, drafts=False))),
    )
    assert {name for name in one if one[name] != other[name]} == {"speedup.png", "tokens_per_step.png"}
