"""The report of a calibration: report.json, the pictures, and report.html, one file that needs
nothing else.

In: a folder, `Findings`. Out: those files in it, what decides about a deployment first.
"""

import base64
import json
from collections.abc import Iterable
from dataclasses import asdict
from html import escape
from pathlib import Path

from firp.calib.drawing import DPI
from firp.calib.report.findings import REPORT_ROWS, Findings
from firp.calib.report.pictures import TEXT_NAMES, draw_pictures, method_name, texts_of
from firp.runtime.bundle.calibration import Choice
from firp.runtime.trees.tree_config import TreeConfig
from firp.runtime.tuning.choose import MARGIN

JSON_NAME = "report.json"
HTML_NAME = "report.html"

_CAPTIONS = {
    "speedup.png": "What a step of greedy decoding gives, and what is left of it once its time is paid "
    "for (compare the paper's Figure 1). Drafting pays where the expected speedup is above the dashed "
    "line.",
    "tokens_per_step.png": "Tokens of one step by size of the tree; higher is better. Solid lines rank "
    "each guess by the token before it, dashed lines take guesses as they come, dotted lines draft with "
    "one corrected tree of fixed shape.",
    "layers.png": "Accuracy and expected speedup by prediction layer (compare the paper's Figure 5). The "
    "pseudo rows of an early layer run through more layers, so the fastest layer is chosen, not the most "
    "accurate one.",
    "accuracy.png": "Share of guesses that are the model's own greedy token, and share where it is among "
    "the first five (compare the paper's Figure 3). Offset 1 is the first token after the one that the "
    "same pass decides.",
    "acceptance.png": "How often the child of each rank is accepted once its parent is, with FIRP and its "
    "path correction. A curve that falls steeply asks for deep and narrow trees, a flat one for wide "
    "trees.",
    "similarity.png": "Cosine of pseudo hidden states and the real ones of the same tokens, layer by "
    "layer (compare the paper's Figure 4). A curve that rises says that the upper layers bring the guess "
    "closer to the truth.",
    "loss.png": "Loss while training, by offset; the panels share one scale. A curve that still falls at "
    "the end says that longer training would help.",
}

_CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; }
body { max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p { max-width: 46rem; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; }
figcaption { max-width: 46rem; color: #444; font-size: .94rem; }
.scroll { overflow-x: auto; }
img { display: block; height: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th.name, td.name { text-align: left; }
thead th { border-bottom: 2px solid #888; }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  img { min-width: 0 !important; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding: .1rem .35rem; white-space: normal; }
  figure, table, h2, h3 { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""


def write_report(folder: Path, findings: Findings) -> None:
    """Write the files into a folder that exists. Raises OSError when the disk refuses."""
    (folder / JSON_NAME).write_text(json.dumps(asdict(findings), indent=1) + "\n", "utf-8")
    pictures = draw_pictures(findings)
    for name, png in pictures.items():
        (folder / name).write_bytes(png)
    (folder / HTML_NAME).write_text(_html(findings, pictures), "utf-8")


def _html(findings: Findings, pictures: dict[str, bytes]) -> str:
    title = escape(f"FIRP calibration of {findings.model_name}")
    figures = "\n".join(_figure(name, png) for name, png in pictures.items())
    tables = "\n".join(
        filter(
            None,
            (
                _tokens_table(findings),
                _static_table(findings),
                _speedup_table(findings),
                _latency_table(findings.choice),
                _layer_table(findings),
                _accuracy_table(findings),
            ),
        )
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_CSS}</style>
</head>
<body>
<h1>{title}</h1>
<p>{escape(_summary(findings))}</p>
<h2>Pictures</h2>
{figures}
<h2>Tables</h2>
{tables}
<p>All numbers, with those of the curves, are in {JSON_NAME}.</p>
</body>
</html>
"""


def _summary(findings: Findings) -> str:
    return (
        f"{findings.model_name} drafts K = {_count(findings.num_predictors, 'token')} ahead from the hidden "
        f"state at the input of layer {findings.prediction_layer} of {findings.num_hidden_layers}. "
        f"Its predictors trained for {_count(findings.steps, 'step')} in {findings.minutes:g} minutes, on "
        f"data of {_count(findings.tokens, 'token')}, the held-out ones included. "
        f"{_verdict(findings.choice)}"
    )


def _verdict(choice: Choice | None) -> str:
    if choice is None:
        return (
            "No latency table was at hand, so nothing is said here about speed: "
            "firp tune chooses a tree on the device itself."
        )
    place = f"On {choice.latency.device} (text: {TEXT_NAMES[choice.text]})"
    tree = _tree(choice.tree)
    rate = (
        f"{choice.tokens_per_step:.2f} tokens per step at {choice.speedup:.3f} times the speed of "
        "plain decoding"
    )
    if choice.drafts:
        return f"{place}, {tree} is expected to be fastest, with {rate}."
    reason = (
        ""
        if choice.speedup < 1
        else f", less than the factor of {MARGIN} that is beyond the error of the prediction"
    )
    return (
        f"{place}, plain decoding is expected to be fastest: "
        f"the best tree, {tree}, would give {rate}{reason}."
    )


def _tree(tree: TreeConfig) -> str:
    depth = "" if tree.depth is None else f" and depth {tree.depth}"
    if tree.draft_sources == 0:
        drafts = "in a pass of their own"
    elif tree.draft_sources is None or tree.draft_sources >= tree.rows:
        drafts = "from every row"
    else:
        drafts = f"from {tree.draft_sources} of them"
    return f"a {tree.kind} tree of {_count(tree.rows, 'row')}{depth} with drafts {drafts}"


def _figure(name: str, png: bytes) -> str:
    # PNG's header has it in pixels; CSS counts 96 an inch
    width = int.from_bytes(png[16:20], "big") * 96 // DPI
    data = base64.b64encode(png).decode()
    alt = name.removesuffix(".png").replace("_", " ")
    image = (
        f'<img src="data:image/png;base64,{data}" width="{width}" '
        f'style="min-width: {width * 7 // 10}px" alt="{alt}">'
    )
    caption = f"<figcaption>{escape(_CAPTIONS[name])}</figcaption>"
    return f'<figure><div class="scroll">{image}</div>{caption}</figure>'


def _tokens_table(findings: Findings) -> str:
    rows = []
    for method in findings.methods:
        for text in texts_of(method.corrected, method.independent):
            for ranking, table in (
                ("path correction", method.corrected),
                ("independent", method.independent),
            ):
                if text in table:
                    rows.append(
                        (method_name(method.method), TEXT_NAMES[text], ranking, *map(_two, table[text]))
                    )
    return _table("Tokens per step by rows of the tree", ("method", "text", "guesses"), REPORT_ROWS, rows)


def _static_table(findings: Findings) -> str:
    rows = [(TEXT_NAMES[text], *map(_two, findings.static[text])) for text in texts_of(findings.static)]
    return _table(
        "Tokens per step of the best static trees, FIRP, by rows of the tree", ("text",), REPORT_ROWS, rows
    )


def _speedup_table(findings: Findings) -> str:
    rows = [(str(size), f"{speedup:.3f}") for size, speedup in findings.speedups]
    return _table("Expected speedup by rows of the tree (greedy)", (), ("rows", "speedup (×)"), rows)


def _latency_table(choice: Choice | None) -> str:
    if choice is None:
        return ""
    table = choice.latency
    columns = zip(*table.lower_ms, *table.upper_ms, strict=True)
    rows = [
        (str(count), *(f"{ms:.3f}" for ms in times)) for count, times in zip(table.rows, columns, strict=True)
    ]
    names = [f"{half} (ms), {cached} cached" for half in ("lower", "upper") for cached in table.contexts]
    note = (
        f"Split at layer {table.prediction_layer}. "
        f"The predictors take {table.predictors_ms:.3f} ms; outside the graphs, a plain step takes "
        f"{table.plain_outside_ms:.3f} ms and a drafted one {table.drafted_outside_ms:.3f} ms. "
        f"A plain step after {choice.cached_tokens} tokens takes {table.plain_ms(choice.cached_tokens):.3f} "
        "ms in all."
    )
    return _table(f"Latency on {table.device}", (), ("rows", *names), rows) + f"\n<p>{escape(note)}</p>"


def _layer_table(findings: Findings) -> str:
    """A column for each layer: there are at most a few, and up to 16 offsets."""
    layers = findings.layers
    chosen = findings.prediction_layer
    offsets = range(len(layers[0].top1) if layers else 0)
    rows = [(f"top-1, offset {j + 1} (%)", *(_percent(layer.top1[j]) for layer in layers)) for j in offsets]
    if layers:
        rows.append(("tokens per step", *(_two(layer.tokens_per_step) for layer in layers)))
        rows.append(("speedup (×)", *(f"{layer.speedup:.3f}" for layer in layers)))
    columns = [
        f"layer {layer.prediction_layer}{' (chosen)' if layer.prediction_layer == chosen else ''}"
        for layer in layers
    ]
    return _table("Sweep of the prediction layer (short training, greedy)", ("",), columns, rows)


def _accuracy_table(findings: Findings) -> str:
    rows = []
    for method in findings.methods:
        for top in (1, 3, 5, 10) if method.accuracy else ():
            rows.append(
                (
                    method_name(method.method),
                    f"top-{top}",
                    *map(_percent, getattr(method.accuracy, f"top{top}")),
                )
            )
    return _table(
        "Held-out accuracy (%) by offset", ("method", "among"), range(1, findings.num_predictors + 1), rows
    )


def _table(title: str, names: Iterable[str], columns: Iterable, rows: list[tuple[str, ...]]) -> str:
    """A table with its title; nothing without rows. names: headings of the columns that are text,
    which come first.
    """
    if not rows:
        return ""
    names = tuple(names)
    head = "".join(f'<th class="name">{escape(name)}</th>' for name in names)
    head += "".join(f"<th>{escape(str(column))}</th>" for column in columns)
    body = "\n".join(
        "<tr>"
        + "".join(f'<td class="name">{escape(cell)}</td>' for cell in row[: len(names)])
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[len(names) :])
        + "</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return f'<h3>{escape(title)}</h3>\n<div class="scroll">{table}</div>'


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _two(value: float) -> str:
    return f"{value:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
