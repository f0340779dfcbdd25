"""The first figure of a report: throughput, and ring against parameter servers, in the main setting."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from bench.report.cells import PLACES
from bench.report.labels import LETTERS, TEXT, height_of_names, wrapped
from bench.report.looks import GREY, INK, PANEL, PAPER
from bench.report.panels import (
    FRAME,
    HEIGHT,
    SIZE,
    WIDTH,
    decorate,
    draw_throughput,
    finish,
    points,
    shown_labels,
    size_axis,
    size_name,
    title_of,
)

NARROW = 3.4  # inches: a phone, or a column of a paper
NARROW_LETTERS = 12  # of a name beside a curve there
ROW = 0.12  # inches between rows
ROW_LETTERS = 24  # of the name of a row
# Ticks of the ratio's axis; those that touch a tick nearer to 1 are left out.
RATIOS = (
    0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97,
    1, 1.03, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100,
)  # fmt: skip
LINEAR = 0.02  # the ratio's axis is linear within about this share around 1, and logarithmic beyond


class View(NamedTuple):
    """How the panels are drawn: the column of their sizes and its name, rows or curves, and measures in inches."""

    x: str
    size: str
    in_rows: bool
    width: float
    inside: float
    letters: int


def overview(ok: pd.DataFrame, duels: pd.DataFrame, margin: float, narrow: bool = False) -> Figure:
    """Throughput in the main setting, and the ratio of the ring to each kind of servers per size.

    `narrow` puts the panels above each other, for a phone or one column of a paper. Where no curve has two sizes,
    the cells are rows.
    """
    setting = main_setting(ok, duels)
    rows, here = _only(ok, setting), _only(duels, setting) if len(duels) else duels
    by_workers = len(here) > 0 and only_workers_scale(here)
    view = _view(rows, by_workers, narrow)
    if len(here) and not view.in_rows:  # the table has the comparisons of another x axis
        here = here[(here["equal"] == "workers") == by_workers]
    panels = 2 if len(here) else 1
    lines, columns = (panels, 1) if narrow else (1, panels)
    height = view.inside + FRAME + 0.35 * narrow
    figure = Figure(figsize=(view.width * columns, height * lines), layout="constrained", facecolor=PAPER)
    axes = figure.add_subplot(lines, columns, 1)
    names = _draw_speed(axes, rows, view)
    decorate(axes, title_of(ok, setting), shown_labels(rows), view.width, names)
    if len(here):
        axes = figure.add_subplot(lines, columns, 2)
        looks = ok.set_index("cell")[["curve", "look"]]
        here = here.assign(disturbed=here["basis"] != "accepted")
        names = _draw_ratio(axes, here.merge(looks, left_on="server", right_index=True), margin, view)
        ring = here["ring_name"].iloc[0] if here["ring_name"].nunique() == 1 else "ring"
        note = f"above 1 the ring is faster; grey: equivalent, within {100 * margin:g} %"
        decorate(axes, f"{ring} ÷ servers", note, view.width, names)
    return figure


def _view(rows: pd.DataFrame, by_workers: bool, narrow: bool) -> View:
    x = "num_workers" if by_workers else SIZE
    in_rows = bool(rows.groupby("curve")[x].nunique().max() < 2)
    letters = NARROW_LETTERS if narrow else LETTERS
    size = "workers" if by_workers else size_name(rows)
    if in_rows:
        inside = 0.25 + ROW * len(rows) + height_of_names(list(rows["curve"]), ROW_LETTERS)
    else:
        inside = max(HEIGHT - FRAME, 0.3 + height_of_names(["ideal", *rows["curve"].unique()], letters))
    return View(x, size, in_rows, NARROW if narrow else WIDTH, inside, letters)


def only_workers_scale(duels: pd.DataFrame) -> bool:
    """Whether the comparisons at equal nodes are of one size or none, and those at equal workers are of more."""
    sizes = duels.groupby("equal")["size"].nunique()
    at_nodes = sizes.drop("workers", errors="ignore").max() if set(sizes.index) - {"workers"} else 0
    return bool(sizes.get("workers", 0) > at_nodes and at_nodes < 2)


def main_setting(ok: pd.DataFrame, duels: pd.DataFrame) -> dict[str, Any]:
    """Place, precision and batch size of the overview: of the first place, those with the most comparisons."""
    table = duels if len(duels) else ok
    table = table[table["place"] == min(table["place"], key=PLACES.index)]
    return dict(zip(PANEL, table.groupby(PANEL, sort=False).size().idxmax(), strict=True))


def _only(table: pd.DataFrame, setting: dict[str, Any]) -> pd.DataFrame:
    return table[(table[list(setting)] == list(setting.values())).all(axis=1)]


def _draw_speed(axes: Axes, rows: pd.DataFrame, view: View) -> list[str]:
    """Tokens per second against size, or as rows, the fastest first; return the names of rows."""
    if view.in_rows:
        unit = view.size.removeprefix("emulated ").split()[0]
        rows = rows.sort_values("tokens_per_s", ascending=False, kind="stable").assign(size=rows[view.x], unit=unit)
        names = _rows(axes, rows, "tokens_per_s")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:,.0f}"))
        axes.set_xlabel("tokens per second")
    else:
        names = []
        draw_throughput(axes, rows, view.x, view.width)
        axes.set_xlabel(view.size)
        axes.set_ylabel("tokens per second")
        finish(axes, view.inside, letters=view.letters)
    return names


def _draw_ratio(axes: Axes, duels: pd.DataFrame, margin: float, view: View) -> list[str]:
    """Ring ÷ servers in the look of the server cells: against size, or as rows; return the names of rows."""
    line, span = (axes.axvline, axes.axvspan) if view.in_rows else (axes.axhline, axes.axhspan)
    line(1, color=INK, linestyle=":", linewidth=1, label="_one")
    span(1 / (1 + margin), 1 + margin, color=GREY, alpha=0.25, linewidth=0)
    shown = duels[["ratio", "ratio_low", "ratio_high"]].to_numpy(dtype="float64")
    ends = float(np.nanmin(shown)), float(np.nanmax(shown))
    if view.in_rows:
        names = _rows(axes, duels.assign(unit="equal " + duels["equal"]), "ratio")
        ratio_axis(axes, *ends, "x", 0.55 / (view.width - 2))
        axes.set_xlabel("ratio of tokens per second")
    else:
        names = []
        for curve, found in duels.groupby("curve", sort=False):
            points(axes, found.drop_duplicates("size"), "ratio", "size", label=str(curve), **found["look"].iloc[0])
        size_axis(axes, list(duels["size"]), view.width)
        ratio_axis(axes, *ends)
        axes.set_xlabel(view.size)
        axes.set_ylabel("ratio of tokens per second")
        finish(axes, view.inside, letters=view.letters)
    return names


def ratio_axis(axes: Axes, low: float, high: float, which: str = "y", apart: float = 0.07) -> None:
    """An axis around 1 on which 3 % can be seen beside a factor of 10: asinh(ln(ratio) / LINEAR).

    Ticks are `apart` (a share of the axis) at least.
    """
    getattr(axes, f"set_{which}scale")("function", functions=(_to_axis, _from_axis))
    ends = _to_axis(np.array([min(low, 0.96), max(high, 1.04)]))
    room = 0.06 * (ends[1] - ends[0])
    getattr(axes, f"set_{which}lim")(*_from_axis(np.array([ends[0] - room, ends[1] + room])))
    kept: list[float] = []
    for ratio in sorted(RATIOS, key=lambda ratio: abs(np.log(ratio))):
        place = float(_to_axis(np.array(ratio)))
        gaps = [abs(place - float(_to_axis(np.array(other)))) for other in kept]
        if ends[0] - room <= place <= ends[1] + room and min(gaps, default=np.inf) > apart * (ends[1] - ends[0]):
            kept.append(ratio)
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(FixedLocator(sorted(kept)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))


def _to_axis(ratio: Any) -> Any:
    return np.arcsinh(np.log(np.maximum(ratio, 1e-9)) / LINEAR)


def _from_axis(place: Any) -> Any:
    return np.exp(LINEAR * np.sinh(place))


def _rows(axes: Axes, rows: pd.DataFrame, column: str) -> list[str]:
    """A column with its interval, in a row per row of the table; return their names: curve, size and unit."""
    names = []
    for place, row in enumerate(rows.to_dict("records")):
        look = {"color": row["look"]["color"], "label": "_row"}
        axes.plot([row[f"{column}_low"], row[f"{column}_high"]], [place, place], linewidth=1.4, **look)
        face: Any = {"markerfacecolor": PAPER} if row["disturbed"] else {}
        axes.plot([row[column]], [place], marker=row["look"]["marker"], markersize=6, **face, **look)
        unit = row["unit"].removesuffix("s") if row["size"] == 1 else row["unit"]
        names.append(wrapped(f"{row['curve']}, {row['size']} {unit}", ROW_LETTERS))
    axes.set_yticks(range(len(names)), names, fontsize=TEXT)
    axes.set_ylim(len(names) - 0.5, -0.5)
    return names
