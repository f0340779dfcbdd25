"""Loss against latency and size of the variants of a model: the Pareto front, its variants named."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from bench.edge.recipe import ORIGINAL
from bench.report.labels import LETTERS, TEXT, height_of_names, name_curves
from bench.report.looks import GREY, INK, PAPER
from bench.report.overview import NARROW, NARROW_LETTERS
from bench.report.panels import FRAME, HEIGHT, WIDTH, decorate, log_ticks
from bench.report.saving import matplotlib_settings

DESCRIPTION = (
    "Held-out loss against the time per token, and against the size of the file, both axes of cost logarithmic. "
    "Filled and named: on the Pareto front, no other variant is at least as good in loss, time and size and better in "
    "one. Bars: intervals over launches. Dotted: 2 % above the original's loss."
)
LOOKS: dict[str, dict[str, Any]] = {
    "torch": {"color": "#0072b2", "marker": "o"},
    "onnxruntime": {"color": "#d55e00", "marker": "D"},
}
PANELS = {  # title: column, factor, label
    "latency": ("token_s_p50", 1e3, "ms per token, batch of 1"),
    "size": ("size_bytes", 1e-6, "MB on disk"),
}


def pareto_figure(table: pd.DataFrame, narrow: bool = False) -> Figure:
    """Return the figure of a table of variants; those without a loss or a time are left out.

    `narrow` puts the panels above each other, for a phone or one column of a paper.
    """
    rows = table[table["loss"].notna() & table["token_s_p50"].notna()]
    letters = NARROW_LETTERS if narrow else LETTERS
    names = [shown(row["name"]) for row in rows.to_dict("records") if row["on_front"] or row["name"] == ORIGINAL]
    inside = max(HEIGHT - FRAME, height_of_names(names, letters) + 0.3)
    lines, columns = (2, 1) if narrow else (1, 2)
    width = NARROW if narrow else WIDTH
    with matplotlib_settings():
        size = (width * columns, (inside + FRAME) * lines + 0.3)
        figure = Figure(figsize=size, layout="constrained", facecolor=PAPER)
        for number, (title, (column, factor, label)) in enumerate(PANELS.items(), start=1):
            axes = figure.add_subplot(lines, columns, number)
            _draw(axes, rows, column, factor)
            decorate(axes, f"Loss and {title}", width=width)
            axes.set_xlabel(label)
            axes.set_ylabel("held-out loss, nats per token")
            name_curves(axes, inside, letters=letters, all_outside=True)
        key = [Line2D([], [], linestyle="", label=runtime, **look) for runtime, look in LOOKS.items()]
        figure.legend(handles=key, loc="outside lower center", ncols=2, frameon=False, fontsize=TEXT, labelcolor=INK)
    return figure


def shown(name: str) -> str:
    """A variant's name in words: 'distilled + int8 dynamic + onnx'."""
    return name.replace("+", " + ").replace("_", " ")


def _draw(axes: Axes, rows: pd.DataFrame, column: str, factor: float) -> None:
    for row in rows.to_dict("records"):
        name = str(row["name"])
        look = LOOKS["onnxruntime" if name.endswith("onnx") else "torch"]
        x, y = float(row[column]) * factor, float(row["loss"])
        label = shown(name) if row["on_front"] or name == ORIGINAL else "_dominated"
        face = look["color"] if row["on_front"] else PAPER
        ends = [float(row.get(f"{column}_{end}", math.nan)) * factor for end in ("low", "high")]
        if not math.isnan(sum(ends)):
            axes.plot(ends, [y, y], color=look["color"], linewidth=1, label="_interval")
        axes.plot([x], [y], **look, linestyle="", markerfacecolor=face, markersize=6, label=label)
    original = rows.loc[rows["name"] == ORIGINAL, "loss"]
    if len(original):
        axes.axhline(1.02 * float(original.iloc[0]), color=GREY, linestyle=":", linewidth=1, label="_limit")
    axes.set_xscale("log")
    log_ticks(axes.xaxis, axes.get_xlim(), "{:,.3g}", apart=0.09)
    axes.yaxis.set_major_locator(MaxNLocator(5))
