"""The pictures of a profile.

In: a `BundleProfile`. Out: PNG bytes by file name; a picture without data is left out.
"""

from collections.abc import Callable

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from firp.calib.drawing import STYLES, legend, panel_row, png, rows_axis
from firp.calib.profiling.profile import BundleProfile
from firp.calib.profiling.step_split import TOTAL
from firp.calib.targets.layer_times import KINDS

# Okabe and Ito's palette
_PARTS = ("#0072B2", "#009E73", "#56B4E9", "#D55E00", "#F0E442", "#595959", "#CC79A7")
_KIND_COLOURS = dict(
    zip(
        KINDS,
        ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#F0E442", "#999999", "#56B4E9", "#000000"),
        strict=True,
    )
)
_DASHES = ("solid", "dashed", "dotted", "dashdot")


def draw_profile(profile: BundleProfile) -> dict[str, bytes]:
    figures = {name: draw(profile) for name, draw in _PICTURES.items()}
    return {name: png(figure) for name, figure in figures.items() if figure}


def _latency(profile: BundleProfile) -> Figure | None:
    graphs = list(dict.fromkeys(measured.graph for measured in profile.passes))
    figure, panels = panel_row("Latency of a pass by rows (median, quartiles shaded)", graphs, share_y=False)
    cached = sorted({measured.cached_tokens for measured in profile.passes})
    batches = sorted({measured.batch for measured in profile.passes})
    for axes, graph in zip(panels, graphs, strict=True):
        for i, tokens in enumerate(cached):
            for j, batch in enumerate(batches):
                points = [
                    p for p in profile.passes if (p.graph, p.cached_tokens, p.batch) == (graph, tokens, batch)
                ]
                rows = [p.rows for p in points]
                colour, marker = STYLES[i % len(STYLES)]
                style = {
                    "color": colour,
                    "linestyle": _DASHES[j % len(_DASHES)],
                    "marker": marker,
                    "markersize": 4.5,
                }
                axes.plot(rows, [p.median_ms for p in points], **style)
                axes.fill_between(
                    rows, [p.low_ms for p in points], [p.high_ms for p in points], color=colour, alpha=0.2
                )
        rows_axis(axes, {p.rows for p in profile.passes}, "rows of the pass")
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("latency (ms)")
    keys = _cached_keys(cached)
    if len(batches) > 1:
        keys += [
            Line2D([], [], color="black", linestyle=_DASHES[j % len(_DASHES)], label=f"batch {b}")
            for j, b in enumerate(batches)
        ]
    legend(figure, keys, columns=4)
    return figure


def _steps(profile: BundleProfile) -> Figure | None:
    if not profile.steps:
        return None
    figure, (axes,) = panel_row(
        "Parts of a step (mean of the middle half of the steps)", [""], inches=(6.6, 4.0)
    )
    names = [
        f"{split.decoding}, {split.tree.rows} rows" if split.tree else split.decoding
        for split in profile.steps
    ]
    parts = [part.name for part in profile.steps[0].parts if part.name != TOTAL]
    bottoms = [0.0] * len(names)
    for part, colour in zip(parts, _PARTS, strict=False):
        values = [split.part(part).middle_ms for split in profile.steps]
        if any(values):
            label = part.removesuffix("_ms").replace("_", " ").replace("kv", "KV").replace("python", "Python")
            axes.bar(names, values, 0.5, bottoms, label=label, color=colour)
            bottoms = [a + b for a, b in zip(bottoms, values, strict=True)]
    for place, top in enumerate(bottoms):
        axes.text(place, top, f"{top:.2f} ms", ha="center", va="bottom", fontsize=9)
    axes.set_ylabel("time (ms)")
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.margins(y=0.1)
    axes.grid(visible=False, axis="x")
    legend(figure, axes.containers, columns=5)
    return figure


def _kinds(profile: BundleProfile) -> Figure | None:
    if not profile.layers:
        return None
    title = f"Share of a graph's time by kind of layer ({profile.layers[0].cached_tokens} cached tokens)"
    figure, (axes,) = panel_row(title, [""], inches=(7.6, 4.0))
    names = [
        f"{layer.graph}\n{layer.rows} {'row' if layer.rows == 1 else 'rows'}" for layer in profile.layers
    ]
    bottoms = [0.0] * len(names)
    for kind in KINDS:
        shares = [
            100 * sum(part.share for part in layer.kinds if part.kind == kind) for layer in profile.layers
        ]
        if any(shares):
            axes.bar(names, shares, 0.65, bottoms, label=kind, color=_KIND_COLOURS[kind])
            bottoms = [a + b for a, b in zip(bottoms, shares, strict=True)]
    axes.set_ylabel("share of the profiled time (%)")
    axes.set_ylim(0, 100)
    axes.grid(visible=False, axis="x")
    legend(figure, axes.containers, columns=8)
    return figure


def _roofline(profile: BundleProfile) -> Figure | None:
    graphs = list(dict.fromkeys(measured.graph for measured in profile.passes))
    figure, panels = panel_row(
        "Share of the roofline (the limit that binds; above 100 %: weights in cache)", graphs
    )
    cached = sorted({measured.cached_tokens for measured in profile.passes})
    batch = min(measured.batch for measured in profile.passes)
    for axes, graph in zip(panels, graphs, strict=True):
        for i, tokens in enumerate(cached):
            points = [
                p for p in profile.passes if (p.graph, p.cached_tokens, p.batch) == (graph, tokens, batch)
            ]
            colour, marker = STYLES[i % len(STYLES)]
            shares = [100 * p.roofline.share for p in points]
            axes.plot([p.rows for p in points], shares, color=colour, marker=marker, markersize=4.5)
        axes.axhline(100, color=_PARTS[5], linestyle="--", linewidth=1)
        rows_axis(axes, {p.rows for p in profile.passes}, "rows of the pass")
    panels[0].set_ylim(bottom=0)  # shared
    panels[0].set_ylabel("least time / measured time (%)")
    legend(figure, _cached_keys(cached), columns=4)
    return figure


def _cached_keys(cached: list[int]) -> list[Line2D]:
    styles = [STYLES[i % len(STYLES)] for i in range(len(cached))]
    names = [f"{tokens} cached tokens" if tokens else "reads no cache" for tokens in cached]
    return [
        Line2D([], [], color=c, marker=m, markersize=4.5, label=n)
        for (c, m), n in zip(styles, names, strict=True)
    ]


_PICTURES: dict[str, Callable[[BundleProfile], Figure | None]] = {
    "latency.png": _latency,
    "steps.png": _steps,
    "layers.png": _kinds,
    "roofline.png": _roofline,
}
