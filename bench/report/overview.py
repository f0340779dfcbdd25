"""The first figure of a report: throughput, and ring against parameter servers, in the main setting."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.cells import PLACES
from bench.report.looks import GREY, INK, PANEL, PAPER
from bench.report.panels import (
    HEIGHT,
    WIDTH,
    decorate,
    draw_throughput,
    legend,
    points,
    shown_labels,
    size_axis,
    title_of,
)


def overview(ok: pd.DataFrame, duels: pd.DataFrame, margin: float) -> Figure:
    """Throughput in the main setting, and the ratio of the ring to each kind of servers per size."""
    setting = main_setting(ok, duels)
    rows = _only(ok, setting)
    by_nodes = rows["num_nodes"].nunique() > 1
    x = "num_nodes" if by_nodes else "num_workers"
    here = _only(duels, setting) if len(duels) else duels
    columns = 2 if len(here) else 1
    figure = Figure(figsize=(WIDTH * columns + 0.4, HEIGHT + 1.2), layout="constrained", facecolor=PAPER)
    axes = figure.add_subplot(1, columns, 1)
    draw_throughput(axes, rows, x)
    decorate(axes, title_of(ok, setting), shown_labels(rows))
    size_axis(axes, sorted(int(n) for n in rows[x].unique()))
    axes.set_xlabel("emulated nodes" if by_nodes and setting["place"] == PLACES[1] else x.removeprefix("num_"))
    axes.set_ylabel("tokens per second")
    if len(here):
        _draw_ratio(figure.add_subplot(1, columns, 2), here, ok, margin)
    legend(figure)
    return figure


def main_setting(ok: pd.DataFrame, duels: pd.DataFrame) -> dict[str, Any]:
    """Place, precision and batch size of the overview: of the first place, those with the most comparisons."""
    table = duels if len(duels) else ok
    table = table[table["place"] == min(table["place"], key=PLACES.index)]
    return dict(zip(PANEL, table.groupby(PANEL, sort=False).size().idxmax(), strict=True))


def _only(table: pd.DataFrame, setting: dict[str, Any]) -> pd.DataFrame:
    return table[(table[list(setting)] == list(setting.values())).all(axis=1)]


def _draw_ratio(axes: Axes, duels: pd.DataFrame, ok: pd.DataFrame, margin: float) -> None:
    """Ring ÷ servers against size in the look of the server cells: filled at equal nodes, hollow at equal workers."""
    axes.axhline(1, color=INK, linestyle=":", linewidth=1)
    axes.axhspan(1 / (1 + margin), 1 + margin, color=GREY, alpha=0.25, linewidth=0)
    styles = ok.set_index("cell")[["curve", "look"]]
    duels = duels.assign(curve=duels["server"].map(styles["curve"]))
    for (curve, equal), found in duels.groupby(["curve", "equal"], sort=False):
        style = styles.loc[found["server"].iloc[0], "look"]
        hollow = {"markerfacecolor": PAPER, "linestyle": ":"} if equal == "workers" else {}
        label = f"{curve}, at equal workers" if hollow else str(curve)
        points(axes, found.drop_duplicates("size"), "ratio", "size", label=label, **{**style, **hollow})
    ring = duels["ring_name"].iloc[0] if duels["ring_name"].nunique() == 1 else "ring"
    decorate(axes, f"{ring} ÷ parameter servers", f"grey band: equivalent, within {100 * margin:g} %")
    size_axis(axes, sorted({int(n) for n in duels["size"]}))
    axes.set_ylim(top=max(1.2, axes.get_ylim()[1]))
    axes.set_xlabel(" or ".join(sorted(duels["equal"].unique())))
    axes.set_ylabel("ratio of tokens per second")
