"""The figures of a report, drawn from the summary table.

One panel per setting (place, precision, batch_size), so that no line joins emulated nodes to one machine. Sizes are
nodes, or ranks where a node has several. Error bars are intervals over launches; a panel lists the labels
(oversubscribed, …) of its rows. A cell of which every launch was rejected because something outside disturbed it is
drawn hollow where speeds are shown, and nowhere else. Files depend on the runs alone: not on the user's
matplotlibrc, the date or random ids.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench import files
from bench.report.bars import step_time
from bench.report.cells import PLACES, batch_per_worker
from bench.report.looks import INK, PANEL, PAPER, curves, that_communicate, with_looks
from bench.report.overview import overview
from bench.report.panels import (
    SIZE,
    Draw,
    draw_throughput,
    grid,
    points,
    rate_axis,
    size_axis,
    that_scale,
)
from bench.report.saving import KINDS, matplotlib_settings, save
from bench.report.verdicts import MARGIN

WIDE = 20  # volumes further apart, in ratio, stand on a logarithmic axis
DESCRIPTIONS = {
    "overview": "Tokens per second against size, both axes logarithmic, or a row per cell where there is one size; "
    "dotted: size × baseline. Where ring and servers are compared, their ratio at equal size, on an axis that is "
    "linear near 1 and logarithmic beyond. Bars: intervals over launches. Curves that coincide are dashed in turn, "
    "their markers side by side.",
    "overview_narrow": "The same for a phone or one column of a paper.",
    "throughput": "Tokens per second against size, both axes logarithmic; dotted: size × baseline. Bars: intervals "
    "over launches.",
    "scaling_efficiency": "Weak-scaling efficiency per node, dedicated servers included, against size.",
    "strong_scaling": "Speedup against size with the global batch fixed, both axes logarithmic; dotted: ideal.",
    "communication_volume": "Megabytes sent per step against size, logarithmic where they differ much. Lines: "
    "predicted; markers: counted; crosses: on the wire.",
    "step_time": "Phases of one step as stacked bars; the tick is the step time of the slowest worker.",
    "batch_size": "Tokens per second against sequences per worker at the largest size; hollow: bf16, half: fp16.",
    "loss_against_time": "Training loss against the time since the first step, at the largest size.",
    "front": "Time against bytes sent by all ranks until the target loss; named: on the Pareto front, no other cell "
    "needs less of both. Hollow: bf16, half: fp16; the larger the marker, the larger the batch.",
}
PRECISION_LOOKS: dict[str, dict[str, Any]] = {
    "fp32": {"linestyle": "-"},
    "bf16": {"linestyle": "--", "markerfacecolor": PAPER},
    "fp16": {"linestyle": ":", "fillstyle": "left"},
}


def write_figures(figures: dict[str, Figure], folder: Path) -> list[str]:
    """Write figures/<name>.svg, .png and .pdf for every figure; return the names."""
    out = files.own_folder(folder, "figures")
    for name, figure in figures.items():
        save(figure, *(out / f"{name}.{kind}" for kind in KINDS))
    return list(figures)


def make_figures(
    summary: pd.DataFrame, duels: pd.DataFrame, losses: pd.DataFrame, margin: float = MARGIN
) -> dict[str, Figure]:
    """The figures by name, in the order of DESCRIPTIONS, without those that no row has numbers for.

    `duels` is ring against servers (`duels.duels`, judged with `margin`), `losses` the loss per step (`loss.read`).
    """
    every = with_looks(to_draw(summary))
    ok = every[~every["disturbed"]]
    if len(duels):
        duels = duels[duels["ring"].isin(every["cell"]) & duels["server"].isin(every["cell"])]
    scaled, strong = that_scale(ok), that_scale(with_global_batch(ok), GLOBAL, "strong_speedup")
    more_settings = len(scaled.drop_duplicates(PANEL)) > 1  # one is in the overview
    makers: dict[str, tuple[Callable[[], Figure], bool]] = {
        "overview": (lambda: overview(every, duels, margin), len(every) > 0),
        "overview_narrow": (lambda: overview(every, duels, margin, narrow=True), len(every) > 0),
        "throughput": (lambda: throughput(that_scale(every)), more_settings),
        "scaling_efficiency": (lambda: scaling_efficiency(scaled), bool(scaled["scaling_efficiency"].notna().any())),
        "strong_scaling": (lambda: strong_scaling(strong), len(strong) > 0),
        "communication_volume": (lambda: communication_volume(ok), len(that_move(ok)) > 0),
        "step_time": (lambda: step_time(ok), len(ok) > 0),
        "batch_size": (lambda: batch_size(ok), len(at_most_workers(ok)) > 0),
        "loss_against_time": (lambda: loss_against_time(ok, losses), bool(losses["loss"].notna().any())),
        "front": (lambda: front(ok), bool(ok["bytes_to_loss"].notna().any())),
    }
    with matplotlib_settings():
        return {name: make() for name, (make, possible) in makers.items() if possible}


def to_draw(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows with numbers, a network first; `disturbed` are those of which every launch was rejected.

    Such a row has the speed of its rejected launches. `batch_size` is that of a worker, also where several hold one
    copy of the model.
    """
    disturbed = (summary["status"] != "ok") & summary["tokens_per_s_with_rejected"].notna() & (summary["place"] != "")
    speed = summary["tokens_per_s"].where(~disturbed, summary["tokens_per_s_with_rejected"])
    nodes = summary["num_nodes"].fillna(summary[SIZE])  # of cells without an ok run
    shown = summary.assign(
        disturbed=disturbed, tokens_per_s=speed, num_nodes=nodes, batch_size=batch_per_worker(summary)
    )
    shown = shown[disturbed | (summary["status"] == "ok")]
    return shown.loc[shown["place"].map(PLACES.index).sort_values(kind="stable").index].copy()


def throughput(ok: pd.DataFrame) -> Figure:
    """Tokens per second against size, with the ideal."""
    return grid(ok, {"tokens per second": draw_throughput}, SIZE)


def scaling_efficiency(ok: pd.DataFrame) -> Figure:
    """Weak-scaling efficiency per node."""

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        axes.axhline(1, color=INK, linestyle=":", linewidth=1, label="_ideal")
        rows = that_communicate(rows)
        for label, look, curve in curves(rows):
            points(axes, curve, "scaling_efficiency_per_node", label=label, **look)
        size_axis(axes, list(rows[SIZE]))
        axes.set_ylim(0, max(1.05, axes.get_ylim()[1]))

    return grid(ok, {"efficiency per node (1 = ideal)": draw}, SIZE)


GLOBAL = ["place", "precision", "global_batch_size"]


def with_global_batch(ok: pd.DataFrame) -> pd.DataFrame:
    """The rows with their global batch size."""
    return ok.assign(global_batch_size=ok["num_workers"] * ok["batch_size"])


def strong_scaling(ok: pd.DataFrame) -> Figure:
    """Speedup against size with the global batch fixed."""

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        sizes = np.sort(rows[SIZE].unique())
        axes.plot(sizes, sizes, color=INK, linestyle=":", linewidth=1, label="ideal", zorder=1.8)
        for label, look, curve in curves(rows):
            points(axes, curve, "strong_speedup", label=label, **look)
        size_axis(axes, list(rows[SIZE]))
        rate_axis(axes, [*sizes, *rows["strong_speedup"].dropna()])

    return grid(ok, {"speedup, global batch fixed": draw}, SIZE, panel=GLOBAL)


def that_move(ok: pd.DataFrame) -> pd.DataFrame:
    """The communicating rows whose bytes are known; settings that move the same bytes count as one."""
    ok = that_communicate(ok)
    ok = ok[ok["bytes_sent_per_worker_per_step_predicted"].notna() | ok["bytes_sent_per_worker_per_step"].notna()]
    moved = ok[[f"bytes_sent_per_{role}_per_step" for role in ("worker", "server")]].fillna(-1).round(-3)
    same = moved.groupby([ok["place"], ok["curve"], ok[SIZE]]).nunique().le(1).all(axis=None)
    ok = ok.drop_duplicates(["place", "curve", SIZE]) if same else ok
    return that_scale(ok, ["place"] if same else PANEL)


def communication_volume(ok: pd.DataFrame) -> Figure:
    """Megabytes sent per step against size: predicted as a line, counted and wire as markers."""

    def draw(axes: Axes, rows: pd.DataFrame, role: str = "worker") -> None:
        column = f"bytes_sent_per_{role}_per_step"
        for label, look, curve in curves(rows):
            curve = curve.sort_values(SIZE)
            sizes = curve.filter(like=column).astype("float64") / 1e6
            predicted, counted = sizes[f"{column}_predicted"], sizes[column]
            if sizes[[column, f"{column}_predicted"]].notna().any(axis=None):
                style: Any = {**look, "markevery": list(np.flatnonzero(counted.notna())), "linewidth": 1.6}
                axes.plot(curve[SIZE], predicted.fillna(counted), label=label, **style)
            if f"{column}_wire" in sizes and sizes[f"{column}_wire"].notna().any():
                axes.plot(curve[SIZE], sizes[f"{column}_wire"], "x", color=INK, markersize=6, label=f"_{label}")
        size_axis(axes, list(rows[SIZE]))
        known = rows[[column, f"{column}_predicted"]].astype("float64").to_numpy() / 1e6
        volumes = known[np.isfinite(known)].tolist()
        if volumes and max(volumes) > WIDE * min(volumes) > 0:
            rate_axis(axes, volumes)
        else:
            axes.set_ylim(0, axes.get_ylim()[1] * 1.05)

    def draw_server(axes: Axes, rows: pd.DataFrame) -> None:
        draw(axes, rows, "server")

    moved = that_move(ok)
    sides: dict[str, Draw] = {"MB sent per worker per step": draw}
    if moved["bytes_sent_per_server_per_step_predicted"].notna().any():
        sides["MB sent per server per step"] = draw_server
    once = not moved.duplicated(["place", "curve", SIZE]).any()
    key = "line: predicted, marker: counted, ×: on the wire"
    return grid(moved, sides, SIZE, panel=["place"] if once else PANEL, key=key)


def at_most_workers(ok: pd.DataFrame) -> pd.DataFrame:
    """The communicating rows with the most workers of their place, of curves with several batch sizes."""
    most = that_communicate(ok[ok["num_workers"] == ok.groupby("place")["num_workers"].transform("max")])
    batches = most.groupby(["place", "curve", "precision"])["batch_size"].transform("nunique")
    return most[batches > 1]


def batch_size(ok: pd.DataFrame) -> Figure:
    """Tokens per second against sequences per worker, a curve per strategy and precision."""
    most = at_most_workers(ok)
    several = most["precision"].nunique() > 1

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        for label, look, curve in curves(rows):
            for precision, line in curve.groupby("precision", sort=False):
                style = {**look, **PRECISION_LOOKS[str(precision)]}
                name = f"{label}, {precision}" if several else label
                points(axes, line, "tokens_per_s", "batch_size", label=name, **style)
        size_axis(axes, list(rows["batch_size"]))
        axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))

    return grid(most, {"tokens per second": draw}, "sequences per worker", panel=["place", "num_workers"])


def loss_against_time(ok: pd.DataFrame, losses: pd.DataFrame) -> Figure:
    """Training loss against time, a line per curve at its most workers; medians over launches per step."""
    lines = losses.dropna(subset="loss").groupby(["cell", "step"])[["elapsed_s", "loss"]].median()
    ok = ok[ok["cell"].isin(lines.index.get_level_values("cell"))]

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        for label, look, curve in curves(rows):
            row = curve.iloc[-1]
            line = lines.loc[row["cell"]]
            marks: Any = {"markevery": (0.02, 0.12), "markersize": 4}  # shares of the diagonal of the axes
            name = f"{label} · {row['num_workers']}"
            axes.plot(line["elapsed_s"], line["loss"], linewidth=1.2, label=name, **{**look, **marks})
        axes.set_xlim(left=0)

    return grid(ok, {"training loss, nats per token": draw}, "seconds since the first step", all_outside=True)


def front(ok: pd.DataFrame) -> Figure:
    """Time against bytes until the target loss; the cells on the Pareto front are named."""
    known = ok.dropna(subset=["time_to_loss_s", "bytes_to_loss"])
    batches = sorted(known["batch_size"].unique())

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        unnamed = rows[~rows["curve"].isin(rows.loc[rows["on_front"], "curve"])]
        fastest = set(unnamed.loc[unnamed.groupby("curve")["time_to_loss_s"].idxmin(), "cell"])
        for row in rows.to_dict("records"):
            name = f"{row['curve']} · {row['num_workers']}, {row['precision']}, batch {row['batch_size']}"
            label = name if row["on_front"] else str(row["curve"]) if row["cell"] in fastest else "_other"
            size = 5 + 2 * batches.index(row["batch_size"])
            look = {**row["look"], **PRECISION_LOOKS[row["precision"]], "linestyle": "", "markersize": size}
            axes.plot([row["bytes_to_loss"] / 1e6], [row["time_to_loss_s"]], label=label, **look)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        most = rows["bytes_to_loss"].max() / 1e6
        axes.set_xlim(-0.03 * most, 1.05 * most + 0.1)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.05)

    panel = ["place", "target_loss"]
    return grid(known, {"seconds to the target loss": draw}, "MB sent by all ranks to the target loss", panel=panel)
