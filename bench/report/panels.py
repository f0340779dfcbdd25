"""Parts of a figure: panels in two columns with titles, notes and one legend, and curves. pyplot is not used."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.report.looks import INK, PANEL, PAPER, curves, that_communicate
from strategies import catalogue

NOTE_WIDTH = 58  # letters of a note that fit above a panel
TITLE_SHARE = 0.78  # a title is larger: of the letters of a note, this share fits
MAX_PANELS = 4  # most settings in one figure; of more, the first SHOWN are drawn
SHOWN = 2
WIDTH, HEIGHT = 4.8, 3.0  # of a panel, inches
LEGEND_HANDLE, LEGEND_LETTER, LEGEND_LINE = 0.6, 0.053, 0.17  # inches: a column's handle, a letter, a line
LEGEND_LINES = 3  # that fit without making the figure higher

IDEAL = "ideal: workers × baseline"

Draw = Callable[[Axes, pd.DataFrame], None]


def grid(
    ok: pd.DataFrame, sides: dict[str, Draw], x: str, *,
    height: float = HEIGHT, panel: list[str] = PANEL, note_width: int = NOTE_WIDTH,
) -> Figure:  # fmt: skip
    """A figure with a panel per setting (the values of the columns `panel`) and side, and one legend below.

    `sides` maps a y label to the function that draws; height is that of a panel, inches; note_width the letters of a
    note. Of more than MAX_PANELS settings the first SHOWN are drawn, and a line above says so.
    """
    settings = list(ok.groupby(panel, sort=False))
    shown = settings if len(settings) <= MAX_PANELS else settings[:SHOWN]
    panels = [(key, rows, side) for key, rows in shown for side in sides]
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH * columns + 0.4, height * lines + 1.0), layout="constrained", facecolor=PAPER)
    for number, (key, rows, side) in enumerate(panels, start=1):
        axes = figure.add_subplot(lines, columns, number)
        sides[side](axes, rows)
        title = title_of(ok, dict(zip(panel, key, strict=True)))
        decorate(axes, fill(title, round(TITLE_SHARE * note_width)), fill(shown_labels(rows), note_width))
        axes.set_xlabel(x)
        axes.set_ylabel(side)
        if x == "workers":
            size_axis(axes, sorted(int(n) for n in ok["num_workers"].unique()))
    if len(shown) < len(settings):
        note = f"The first {SHOWN} of {len(settings)} settings; the tables have all."
        figure.suptitle(note, fontsize=8, style="italic", color=INK, x=0.01, ha="left")
    legend(figure)
    return figure


def title_of(ok: pd.DataFrame, setting: dict[str, Any]) -> str:
    """'fp32, 8 sequences per worker', after the place unless everything ran on one machine."""
    words = {
        "place": "{}", "precision": "{}", "batch_size": "{} sequences per worker",
        "global_batch_size": "{} sequences in the global batch", "target_loss": "until loss {:.3g}",
    }  # fmt: skip
    shown = [field for field in setting if field != "place" or set(ok["place"]) != {"one machine"}]
    named = {**setting}
    if "strategy" in setting:
        named["strategy"] = catalogue.find(str(setting["strategy"])).title
    return ", ".join(words.get(field, "{}").format(named[field]) for field in shown)


def decorate(axes: Axes, title: str, labels: str = "") -> None:
    """Set the title, the note under it (labels), the grid and the colours of a panel."""
    axes.set_title(title, loc="left", fontsize=9.5, fontweight="bold", color=INK, pad=6 + 10 * len(labels.splitlines()))
    if labels:
        axes.text(0, 1.02, labels, transform=axes.transAxes, fontsize=7.5, style="italic", color=INK)
    axes.set_facecolor(PAPER)
    axes.grid(axis="both", color="#8c8c8c", alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.tick_params(colors=INK, which="both")
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def shown_labels(rows: pd.DataFrame) -> str:
    """'loopback; oversubscribed at 4 workers': the labels of the communicating rows, and where unless on all."""
    communicating = that_communicate(rows)
    of_row = (communicating if len(communicating) else rows)["labels"].str.split()
    words = []
    for label in sorted(set(of_row.explode().dropna())):
        where = of_row.map(lambda labels, label=label: label in labels)
        workers = ", ".join(str(n) for n in sorted(rows.loc[where.index[where], "num_workers"].unique()))
        words.append(label.replace("_", " ") + ("" if where.all() else f" at {workers} workers"))
    return "; ".join(words)


def size_axis(axes: Axes, sizes: list[int]) -> None:
    """Ticks at the given sizes, on a log axis if they span more than a factor of 4; the y axis starts at 0."""
    if sizes[-1] / sizes[0] > 4:
        axes.set_xscale("log", base=2)
        axes.set_xlim(sizes[0] / 1.2, sizes[-1] * 1.2)
    else:
        margin = 0.06 * (sizes[-1] - sizes[0]) or 0.5
        axes.set_xlim(sizes[0] - margin, sizes[-1] + margin)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:.0f}"))
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.05)


def legend(figure: Figure) -> None:
    """Add one legend for all panels, each label once; the figure grows by the lines that it needs."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if entries:
        fitting = figure.get_figwidth() / (LEGEND_HANDLE + LEGEND_LETTER * max(map(len, entries)))
        columns = min(3, max(1, int(fitting)))
        more_lines = max(0, -(-len(entries) // columns) - LEGEND_LINES)
        figure.set_figheight(figure.get_figheight() + more_lines * LEGEND_LINE)
        figure.legend(
            list(entries.values()), list(entries), loc="outside lower center",
            ncols=columns, frameon=False, labelcolor=INK, fontsize=8,
        )  # fmt: skip


def draw_throughput(axes: Axes, rows: pd.DataFrame, x: str) -> None:
    """A curve per strategy and variant, and an ideal line (workers × baseline) per distinct baseline."""
    workers = rows.groupby(x)["num_workers"].max()
    rates = sorted({float(rate) for rate in (rows["tokens_per_s"] / rows["speedup"]).dropna().round(6)})
    for rate in rates:
        axes.plot(workers.index, rate * workers, color=INK, linestyle=":", linewidth=1, label=IDEAL, zorder=5)
    for label, look, curve in curves(rows):
        points(axes, curve, "tokens_per_s", x, label=label, **look)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))


def points(axes: Axes, curve: pd.DataFrame, column: str, x: str = "num_workers", **look: Any) -> None:
    """Medians joined by lines, with their intervals as error bars where there is one."""
    curve = curve.sort_values(x)
    middle, low, high = (curve[f"{column}{end}"].astype("float64") for end in ("", "_low", "_high"))
    if middle.notna().any():
        places = curve[x].astype("float64")
        axes.plot(places, middle, markersize=5, **look)
        known = low.notna()
        faint = {"color": look["color"], "linewidth": 1, "alpha": look.get("alpha", 1)}
        axes.vlines(places[known], low[known], high[known], **faint)
