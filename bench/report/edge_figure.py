"""Loss, latency and size of the variants of a model in one figure."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.edge.recipe import ORIGINAL
from bench.report.looks import INK, PAPER

DESCRIPTION = (
    "Held-out loss against the time per token, and against the size of the file, both axes of cost logarithmic. "
    "Filled: on the Pareto front, no other variant is at least as good in loss, time and size and better in one. "
    "Blue: torch; orange: onnxruntime. Numbers are those of the tables. Bars: intervals over launches. Dotted: 2 % "
    "above the original's loss."
)
COLOURS = {"torch": "#0072b2", "onnxruntime": "#d55e00"}
CLOSE = 0.06  # share of an axis
Point = tuple[float, float, str]


def pareto_figure(table: pd.DataFrame) -> Figure:
    """Return the figure of a table of variants; those without a loss or a time are left out."""
    rows = table[table["loss"].notna() & table["token_s_p50"].notna()]
    figure = Figure(figsize=(11.0, 4.2), layout="constrained")
    left, right, names = figure.subplots(1, 3, width_ratios=(4, 4, 3))
    right.sharey(left)
    _draw(left, rows, "token_s_p50", 1e3, "ms per token, batch of 1")
    _draw(right, rows, "size_bytes", 1e-6, "size on disk, MB")
    left.set_ylabel("held-out loss, nats per token")
    names.axis("off")
    lines = [f"{row['number']}  {row['name']}" for row in rows.to_dict("records")]
    names.text(0, 1, "\n".join(lines), va="top", fontsize=8, linespacing=1.5, transform=names.transAxes, color=INK)
    return figure


def _draw(axes: Axes, rows: pd.DataFrame, column: str, factor: float, label: str) -> None:
    points = []
    for row in rows.to_dict("records"):
        colour = COLOURS["onnxruntime" if str(row["name"]).endswith("onnx") else "torch"]
        x, y = float(row[column]) * factor, float(row["loss"])
        axes.plot(x, y, "o", color=colour, markerfacecolor=colour if row["on_front"] else PAPER, markersize=7)
        ends = [float(row.get(f"{column}_{end}", math.nan)) * factor for end in ("low", "high")]
        if not math.isnan(sum(ends)):
            axes.plot(ends, [y, y], color=colour, linewidth=1)
        points.append((math.log(x), y, str(row["number"])))
    original = rows.loc[rows["name"] == ORIGINAL, "loss"]
    if len(original):
        axes.axhline(1.02 * float(original.iloc[0]), color="#9a9a9a", linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(label)
    for log_x, y, text in _merged(points):
        at = math.exp(log_x), y
        axes.annotate(text, at, xytext=(5, 4), textcoords="offset points", fontsize=8, color=INK)


def _merged(points: list[Point]) -> list[Point]:
    """Return the points with one text for those that lie so close together that their numbers would overlap."""
    width, height = (max(values) - min(values) or 1.0 for values in ([p[0] for p in points], [p[1] for p in points]))
    found: list[Point] = []
    for x, y, text in sorted(points):
        near = next((p for p in found if abs(x - p[0]) < CLOSE * width and abs(y - p[1]) < CLOSE * height), None)
        if near is None:
            found.append((x, y, text))
        else:
            found[found.index(near)] = (near[0], near[1], f"{near[2]}, {text}")
    return found
