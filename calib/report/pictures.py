"""The pictures of a calibration report.

In: `Findings`. Out: PNG bytes by file name, in the report's order; a picture without data is left
out.
"""

from collections.abc import Callable

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from firp.calib.drawing import PANEL_INCHES, STYLES, legend, panel_row, png, rows_axis
from firp.calib.report.findings import REPORT_ROWS, Findings, MethodFindings
from firp.calib.text.continuations import SAMPLING_TEMPERATURE
from firp.runtime.bundle.calibration import TEXTS

TEXT_NAMES = {
    "greedy": "greedy",
    "sampled": f"sampled at temperature {SAMPLING_TEMPERATURE}",
    "text": "held-out text",
}
_METHOD_NAMES = {"firp": "FIRP", "medusa": "Medusa"}
_MARK, _GREY = "#D55E00", "#595959"
_OFFSETS = matplotlib.colormaps["viridis"]  # ordered, and told apart by lightness alone
_TREE_ROWS = "rows of the tree, root included"


def method_name(method: str) -> str:
    return _METHOD_NAMES.get(method, method)


def texts_of(*tables: dict) -> list[str]:
    """The kinds of text that any of the tables has, in the usual order."""
    return [text for text in TEXTS if any(text in table for table in tables)]


def draw_pictures(findings: Findings) -> dict[str, bytes]:
    figures = {name: draw(findings) for name, draw in _PICTURES.items()}
    return {name: png(figure) for name, figure in figures.items() if figure}


def _speedup(findings: Findings) -> Figure | None:
    if not findings.speedups:
        return None
    figure, (axes,) = panel_row(
        "Tokens per step and expected speedup by tree size (greedy)", [""], inches=(6.6, 4.2)
    )
    firp = findings.methods[0]
    given, ranking = (
        (firp.corrected, "path correction")
        if "greedy" in firp.corrected
        else (firp.independent, "independent guesses")
    )
    tokens = list(zip(REPORT_ROWS, given.get("greedy", ()), strict=False))
    lines = ((tokens, f"tokens per step, {ranking}", "o"), (findings.speedups, "expected speedup", "s"))
    for index, (points, label, marker) in enumerate(lines):
        if points:
            axes.plot(*zip(*points, strict=True), color=STYLES[2 * index][0], marker=marker, label=label)
    axes.axhline(1, color=_GREY, linestyle="--", linewidth=1.2, label="plain decoding")
    choice = findings.choice
    if choice and choice.drafts:
        label = f"chosen tree: {choice.tree.rows} rows, {choice.speedup:.2f}×"
        star = {"marker": "*", "markersize": 17, "markeredgecolor": "white", "linestyle": "none", "zorder": 5}
        axes.plot([choice.tree.rows], [choice.speedup], color=_MARK, label=label, **star)
    rows_axis(axes, {rows for rows, _ in (*tokens, *findings.speedups)}, _TREE_ROWS)
    axes.set_ylabel("tokens per step, speedup (plain decoding = 1)")
    axes.set_ylim(bottom=min(0.9, axes.get_ylim()[0]))
    legend(figure, axes.get_lines(), columns=2)
    return figure


def _tokens_per_step(findings: Findings) -> Figure | None:
    texts = texts_of(
        findings.static,
        *(table for method in findings.methods for table in (method.corrected, method.independent)),
    )
    if not texts:
        return None
    figure, panels = panel_row(
        "Tokens per step by tree size, a draft at every step", [TEXT_NAMES[text] for text in texts]
    )
    styles = set()
    for axes, text in zip(panels, texts, strict=True):
        curves = [(0, "dotted", findings.static)]
        for index, method in enumerate(findings.methods):
            curves += [(index, "dashed", method.independent), (index, "solid", method.corrected)]
        for index, style, table in curves:
            if values := table.get(text):
                points = zip(*zip(REPORT_ROWS, values, strict=False), strict=True)
                axes.plot(
                    *points,
                    linestyle=style,
                    **_method_style(index),
                    linewidth=2.2 if style == "dotted" else 1.6,
                )
                styles.add(style)
        axes.axhline(1, color=_GREY, linewidth=1)
        rows_axis(axes, REPORT_ROWS, _TREE_ROWS)
    panels[0].set_ylabel("tokens per step (plain decoding = 1)")
    names = {"solid": "path correction", "dashed": "independent guesses", "dotted": "best static tree (FIRP)"}
    kinds = [
        Line2D([], [], color="black", linestyle=style, label=names[style])
        for style in names
        if style in styles
    ]
    keys = [
        Line2D([], [], label=method_name(method.method), **_method_style(i))
        for i, method in enumerate(findings.methods)
    ]
    legend(figure, keys + kinds, columns=4 if len(panels) > 1 else 2)
    return figure


def _layers(findings: Findings) -> Figure | None:
    if not findings.layers:
        return None
    title = f"Sweep of the prediction layer, of {findings.num_hidden_layers} layers (short training)"
    figure, (left, right) = panel_row(title, ["top-1 accuracy", "expected speedup, greedy"], share_y=False)
    layers = [layer.prediction_layer for layer in findings.layers]
    offsets = range(len(findings.layers[0].top1))
    for j in offsets:
        left.plot(
            layers, [100 * layer.top1[j] for layer in findings.layers], **_offset_style(j, len(offsets))
        )
    _percent_axis(left, "correct guesses (%)")
    right.plot(layers, [layer.speedup for layer in findings.layers], color=STYLES[0][0], marker="s")
    right.axhline(1, color=_GREY, linestyle="--", linewidth=1.2, label="plain decoding")
    right.set_ylabel("speedup over plain decoding (×)")
    for axes in (left, right):
        mark = axes.axvline(findings.prediction_layer, color=_MARK, linestyle=":", linewidth=2, zorder=1)
        mark.set_label(f"chosen: layer {findings.prediction_layer}")
        axes.set_xlabel("prediction layer")
        axes.set_xticks(sorted({*layers, findings.prediction_layer}))
    legend(figure, [*left.get_lines(), right.get_lines()[1]], columns=6)
    return figure


def _accuracy(findings: Findings) -> Figure | None:
    shown = [
        (index, method)
        for index, method in enumerate(findings.methods)
        if method.accuracy and method.accuracy.top1
    ]
    if not shown:
        return None
    offsets = max(len(method.accuracy.top1) for _, method in shown)
    inches = (max(PANEL_INCHES[0], 0.42 * offsets), PANEL_INCHES[1])
    figure, panels = panel_row("Held-out accuracy by offset", ["top-1", "top-5"], inches=inches)
    for axes, top in zip(panels, ("top1", "top5"), strict=True):
        width = 0.8 / len(shown)
        for place, (index, method) in enumerate(shown):
            shares = [100 * share for share in getattr(method.accuracy, top)]
            middles = [j + 1 + (place - (len(shown) - 1) / 2) * width for j in range(len(shares))]
            colour = _method_style(index)["color"]
            bars = axes.bar(middles, shares, width * 0.94, color=colour, label=method_name(method.method))
            if offsets * len(shown) <= 12:  # more of them would not fit side by side
                axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=1)
        axes.set_xlabel("offset (tokens after the next one)")
        axes.set_xticks(range(1, offsets + 1))
        axes.set_xlim(0.4, offsets + 0.6)
        axes.grid(visible=False, axis="x")
        axes.margins(y=0.1)
    _percent_axis(panels[0], "correct guesses (%)")
    legend(figure, panels[0].containers, columns=4)
    return figure


def _acceptance(findings: Findings) -> Figure | None:
    texts = texts_of(findings.acceptance)
    if not texts:
        return None
    figure, panels = panel_row(
        "Accepted children by rank, once their parent is accepted", [TEXT_NAMES[text] for text in texts]
    )
    for axes, text in zip(panels, texts, strict=True):
        for j, shares in enumerate(findings.acceptance[text]):
            style = _offset_style(j, len(findings.acceptance[text])) | {"label": f"depth {j + 1}"}
            axes.plot(range(1, len(shares) + 1), [100 * share for share in shares], **style)
        axes.set_xlabel("rank of the child (1 = most probable)")
        axes.set_xticks(range(1, 1 + max(map(len, findings.acceptance[text]), default=1)))
    _percent_axis(panels[0], "accepted (%)")
    legend(figure, panels[0].get_lines(), columns=8)
    return figure


def _similarity(findings: Findings) -> Figure | None:
    if not any(findings.similarity):
        return None
    figure, (axes,) = panel_row("Similarity of pseudo and real hidden states", [""], inches=(6.6, 4.2))
    for j, cosines in enumerate(findings.similarity):
        layers = range(findings.prediction_layer, findings.prediction_layer + len(cosines))
        axes.plot(layers, cosines, **_offset_style(j, len(findings.similarity)))
    axes.set_xlabel(
        f"hidden state at the input of layer ({findings.num_hidden_layers}: output of the last layer)"
    )
    axes.set_ylabel("mean cosine similarity")
    axes.set_xlim(findings.prediction_layer - 0.3, findings.num_hidden_layers + 0.3)
    _integer_axis(axes)
    legend(figure, axes.get_lines(), columns=6)
    return figure


def _loss(findings: Findings) -> Figure | None:
    trained = [method for method in findings.methods if method.curve]
    if not trained:
        return None
    figure, panels = panel_row(
        "Training loss (running mean)", [method_name(method.method) for method in trained]
    )
    for axes, method in zip(panels, trained, strict=True):
        _loss_curves(axes, method)
    panels[0].set_ylabel("KL divergence from the model (nats)")
    panels[0].set_ylim(bottom=0)
    legend(figure, panels[0].get_lines(), columns=8)
    return figure


def _loss_curves(axes: Axes, method: MethodFindings) -> None:
    steps = [step for step, _ in method.curve]
    for j, losses in enumerate(zip(*(losses for _, losses in method.curve), strict=True)):
        style = _offset_style(j, len(method.curve[0][1])) | {"marker": "" if len(steps) > 1 else "o"}
        axes.plot(steps, losses, **style)
    axes.set_xlabel("step")
    _integer_axis(axes)


_PICTURES: dict[str, Callable[[Findings], Figure | None]] = {
    "speedup.png": _speedup,
    "tokens_per_step.png": _tokens_per_step,
    "layers.png": _layers,
    "accuracy.png": _accuracy,
    "acceptance.png": _acceptance,
    "similarity.png": _similarity,
    "loss.png": _loss,
}


def _percent_axis(axes: Axes, label: str) -> None:
    """Percent from 0 to what is shown, to 1 where that is nothing."""
    axes.set_ylabel(label)
    axes.set_ylim(0, max(1, min(105, axes.get_ylim()[1])))


def _integer_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def _method_style(index: int) -> dict:
    colour, marker = STYLES[index % len(STYLES)]
    return {"color": colour, "marker": marker, "markersize": 5}


def _offset_style(j: int, offsets: int) -> dict:
    colour = _OFFSETS(0.85 * j / max(1, offsets - 1))  # its light end is too pale on white
    return {"color": colour, "marker": "os^D"[j % 4], "markersize": 4.5, "label": f"offset {j + 1}"}
