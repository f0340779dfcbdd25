"""How a figure is laid out: panels in two columns, dressed alike, with one legend; pyplot is never used."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.config import COMMUNICATING
from bench.report.looks import INK, NAMES, PANEL, PAPER

NOTE_WIDTH = 52  # letters that fit above a panel beside long tick labels
MAX_PANELS = 4  # settings in one figure; of more, which nobody compares by eye, the first SHOWN stand for all
SHOWN = 2
WIDTH, HEIGHT = 4.8, 3.0  # of a panel, inches
LEGEND_HANDLE, LEGEND_LETTER, LEGEND_LINE = 0.6, 0.053, 0.17  # of a legend's column and line, inches
LEGEND_LINES = 3  # for which a figure has room

Draw = Callable[[Axes, pd.DataFrame], None]


def grid(
    ok: pd.DataFrame, sides: dict[str, Draw], x: str, *, height: float = HEIGHT, panel: list[str] = PANEL
) -> Figure:
    """A figure of one panel per setting, each drawn once per side (its y label), with one legend below.

    Of more than MAX_PANELS settings the first SHOWN are drawn, and the figure says so.
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
        dress(axes, title_of(ok, dict(zip(panel, key, strict=True))), fill(shown_labels(rows), NOTE_WIDTH))
        axes.set_xlabel(x)
        axes.set_ylabel(side)
        if x == "workers":
            size_axis(axes, sorted(int(n) for n in ok["num_workers"].unique()))
    if len(shown) < len(settings):
        note = f"The first {SHOWN} of {len(settings)} settings; the tables hold all."
        figure.suptitle(note, fontsize=8, style="italic", color=INK, x=0.01, ha="left")
    legend(figure)
    return figure


def title_of(ok: pd.DataFrame, setting: dict[str, Any]) -> str:
    """'fp32, 8 sequences per worker', and where, unless everything ran on one machine."""
    words = {
        "place": "{}", "precision": "{}", "batch_size": "{} sequences per worker",
        "global_batch_size": "{} sequences together", "target_loss": "until loss {:.3g}",
    }  # fmt: skip
    shown = [field for field in setting if field != "place" or set(ok["place"]) != {"one machine"}]
    named = {**setting, "strategy": NAMES.get(str(setting.get("strategy")))}
    return ", ".join(words.get(field, "{}").format(named[field]) for field in shown)


def dress(axes: Axes, title: str, labels: str = "") -> None:
    """Title, labels and grid of a panel, in ink and paper."""
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
    """'loopback; oversubscribed at 4 workers': the labels of the rows that communicate, and where, unless on all."""
    talking = rows[rows["strategy"].isin(COMMUNICATING)]
    of_row = (talking if len(talking) else rows)["labels"].str.split()
    words = []
    for label in sorted(set(of_row.explode().dropna())):
        where = of_row.map(lambda labels, label=label: label in labels)
        workers = ", ".join(str(n) for n in sorted(rows.loc[where.index[where], "num_workers"].unique()))
        words.append(label.replace("_", " ") + ("" if where.all() else f" at {workers} workers"))
    return "; ".join(words)


def size_axis(axes: Axes, sizes: list[int]) -> None:
    """Whole workers (or nodes) as ticks, doublings evenly spaced when the range is wide; the other axis from zero."""
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
    """One legend for all panels, every label once."""
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
