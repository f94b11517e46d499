"""The look of every picture of firp: panels side by side, legends below them, one palette.

In: matplotlib figures in the making. Out: PNG bytes.
"""

import io
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

DPI = 150  # twice the width at which report.html shows them
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))  # Okabe and Ito's palette
PANEL_INCHES = (4.2, 3.5)


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def panel_row(title: str, names: list[str], share_y: bool = True, inches: tuple[float, float] = PANEL_INCHES):
    """A figure, and its axes side by side. inches: of one panel."""
    figure = Figure((max(6.6, inches[0] * len(names)), inches[1] + 0.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.06)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    all_axes = list(figure.subplots(1, len(names), sharey=share_y, squeeze=False)[0])
    for axes, name in zip(all_axes, names, strict=True):
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, all_axes


def legend(figure: Figure, handles: Iterable, columns: int) -> None:
    """Put the legend below the panels, where it covers no data."""
    handles = list(handles)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(columns, len(handles)),
        frameon=False,
        fontsize=9,
    )


def rows_axis(axes: Axes, rows: Iterable[int], label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(rows), [str(count) for count in sorted(rows)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)
