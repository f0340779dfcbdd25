"""The figures of a report, drawn from the summary table.

One panel per setting (place, precision, batch_size), so that no line joins emulated nodes to one machine. Error bars
are intervals over launches; a panel lists the labels (oversubscribed, …) of its rows. Only ok cells are drawn.
Files depend on the runs alone: not on the user's matplotlibrc, the date or random ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.report.cells import PLACES
from bench.report.looks import INK, PANEL, PHASES, curves, that_communicate, with_looks
from bench.report.overview import overview
from bench.report.panels import Draw, draw_throughput, grid, points, size_axis
from bench.report.verdicts import MARGIN
from strategies import catalogue

KINDS = ("svg", "png", "pdf")
MAX_BARS = 20  # per panel of the step-time figure
BAR_LABEL_WIDTH, BAR_NOTE_WIDTH = 32, 44  # letters of a tick label, and of a note beside such labels
DESCRIPTIONS = {
    "overview": "Left: tokens per second against size; dotted: workers × baseline. Right: tokens per second of the "
    "ring ÷ those of parameter servers; above the grey band the ring is faster. Bars: intervals over launches.",
    "throughput": "Tokens per second against workers; dotted: workers × baseline. Bars: interval over launches.",
    "scaling_efficiency": "Weak-scaling efficiency against workers; hollow: per node, dedicated servers included.",
    "strong_scaling": "Speedup against workers with the global batch fixed; dotted: ideal.",
    "communication_volume": "Megabytes sent per step against workers. Lines: predicted; markers: counted; crosses: "
    "on the wire.",
    "step_time": "Phases of one step as stacked bars; the tick is the step time of the slowest worker.",
    "batch_size": "Tokens per second against sequences per worker, by precision, at the largest number of workers.",
    "loss_against_time": "Training loss against the time since the first step, at the largest number of workers.",
    "front": "Time against bytes sent by all ranks until the target loss; circled: on the Pareto front, no other cell "
    "needs less of both.",
}
PRECISION_LINES = {"fp32": "-", "bf16": "--", "fp16": ":"}
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "psring", "font.size": 9.0,
    "axes.titley": 1.0,  # without it, every title makes matplotlib measure the whole panel again
    "text.parse_math": False,  # a $ in a path is no formula
}  # fmt: skip


@contextmanager
def _settings() -> Iterator[None]:
    """Matplotlib's defaults with STYLE, whatever the user's matplotlibrc says; the former settings afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def write_figures(figures: dict[str, Figure], folder: Path) -> list[str]:
    """Write figures/<name>.svg, .png and .pdf for every figure; return the names."""
    (folder / "figures").mkdir(exist_ok=True)
    no_date: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "png": {}, "pdf": {"CreationDate": None}}
    with _settings():
        for name, figure in figures.items():
            layout = figure.get_layout_engine()
            if layout is not None:
                layout.execute(figure)  # once for all formats
                figure.set_layout_engine(None)  # else savefig lays out again for every format
            for kind, metadata in no_date.items():
                partial = folder / "figures" / f"{name}.{kind}.partial"
                figure.savefig(partial, format=kind, metadata=metadata, dpi=150)
                partial.replace(partial.with_suffix(""))
    return list(figures)


def make_figures(
    summary: pd.DataFrame, duels: pd.DataFrame, losses: pd.DataFrame, margin: float = MARGIN
) -> dict[str, Figure]:
    """The figures by name, in the order of DESCRIPTIONS, without those that no row has numbers for.

    `duels` is ring against servers (`duels.duels`, judged with `margin`), `losses` the loss per step (`loss.read`).
    """
    ok = summary[summary["status"] == "ok"]
    ok = with_looks(ok.loc[ok["place"].map(PLACES.index).sort_values(kind="stable").index])  # a network first
    if len(duels):  # cells all of whose launches were rejected have no row that could be drawn
        duels = duels[duels["ring"].isin(ok["cell"]) & duels["server"].isin(ok["cell"])]
    several = ok[ok["num_workers"] > 1]
    makers: dict[str, tuple[Callable[[], Figure], pd.Series]] = {
        "overview": (lambda: overview(ok, duels, margin), ok["tokens_per_s"]),
        "throughput": (lambda: throughput(ok), ok["tokens_per_s"]),
        "scaling_efficiency": (lambda: scaling_efficiency(ok), ok["scaling_efficiency"]),
        "strong_scaling": (lambda: strong_scaling(ok), several["strong_speedup"]),
        "communication_volume": (lambda: communication_volume(ok), ok["bytes_sent_per_worker_per_step"]),
        "step_time": (lambda: step_time(ok), ok["step_s"]),
        "batch_size": (lambda: batch_size(ok), _if_varied(ok)),
        "loss_against_time": (lambda: loss_against_time(ok, losses), losses["loss"]),
        "front": (lambda: front(ok), ok["bytes_to_loss"]),
    }
    with _settings():
        return {name: make() for name, (make, needed) in makers.items() if needed.notna().any()}


def _if_varied(ok: pd.DataFrame) -> pd.Series:
    """tokens_per_s of the communicating cells if batch size or precision varies, else no row."""
    varied = len(ok.drop_duplicates(["precision", "batch_size"])) > 1
    return that_communicate(ok if varied else ok.iloc[:0])["tokens_per_s"]


def throughput(ok: pd.DataFrame) -> Figure:
    """Tokens per second against workers, with the ideal."""

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        draw_throughput(axes, rows, "num_workers")

    return grid(ok, {"tokens per second": draw}, "workers")


def scaling_efficiency(ok: pd.DataFrame) -> Figure:
    """Weak-scaling efficiency per worker and, with dedicated servers, per node."""

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        axes.axhline(1, color=INK, linestyle=":", linewidth=1, label="ideal")
        for label, look, curve in curves(rows):
            points(axes, curve, "scaling_efficiency", label=label, **look)
            if (curve["num_servers"] > 0).any():
                hollow = {**look, "markerfacecolor": "none", "linewidth": 0.8, "alpha": 0.75}
                points(axes, curve, "scaling_efficiency_per_node", label=f"{label}, per node", **hollow)

    return grid(ok, {"scaling efficiency (1 = ideal)": draw}, "workers")


def strong_scaling(ok: pd.DataFrame) -> Figure:
    """Speedup against workers with the global batch fixed."""
    known = ok[ok["strong_speedup"].notna()]
    known = known.assign(global_batch_size=known["num_workers"] * known["batch_size"])
    panel = ["place", "precision", "global_batch_size"]
    scaled = known.groupby(panel)["num_workers"].transform("nunique") > 1

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        workers = np.sort(rows["num_workers"].unique())
        axes.plot(workers, workers, color=INK, linestyle=":", linewidth=1, label="ideal")
        for label, look, curve in curves(rows):
            points(axes, curve, "strong_speedup", label=label, **look)

    return grid(known[scaled], {"speedup, global batch fixed": draw}, "workers", panel=panel)


def communication_volume(ok: pd.DataFrame) -> Figure:
    """Megabytes sent per step against workers: predicted as a line, counted and wire as markers."""

    def draw(axes: Axes, rows: pd.DataFrame, role: str = "worker") -> None:
        column = f"bytes_sent_per_{role}_per_step"
        communicating = that_communicate(rows)
        for label, look, curve in curves(communicating):
            # Where two strategies send the same, the later, thinner line leaves the earlier one visible.
            weight = max(1, len(catalogue.CATALOGUE) - catalogue.order(curve["strategy"].iloc[0]))
            line = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 0.2 + 0.9 * weight}
            dot = {"color": look["color"], "marker": look["marker"], "markersize": 2 + 2 * weight}
            sizes = curve.filter(like=column).astype("float64") / 1e6
            workers = curve["num_workers"]
            if sizes[[column, f"{column}_predicted"]].notna().any(axis=None):
                axes.plot(workers, sizes[f"{column}_predicted"], **line, label=f"{label}, predicted")
                axes.plot(workers, sizes[column], **dot, linestyle="", label=f"{label}, counted")
            if f"{column}_wire" in sizes and sizes[f"{column}_wire"].notna().any():
                axes.plot(workers, sizes[f"{column}_wire"], "x", color=INK, markersize=6, label="on the wire")

    def draw_server(axes: Axes, rows: pd.DataFrame) -> None:
        draw(axes, rows, "server")

    sides: dict[str, Draw] = {"MB sent per worker per step": draw}
    if ok["bytes_sent_per_server_per_step_predicted"].notna().any():
        sides["MB sent per server per step"] = draw_server
    return grid(ok, sides, "workers")


def step_time(ok: pd.DataFrame) -> Figure:
    """Phases of a step as a stacked bar per cell; the tick is the step time of the slowest worker."""

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        shown = _largest(rows)
        bars = [
            (str(row["num_workers"]) if place else bar_label(label, row["num_workers"]), row)
            for label, _, curve in curves(shown)
            for place, row in enumerate(curve.to_dict("records"))
        ]
        start = np.zeros(len(bars))
        for phase, colour in PHASES.items():
            width = np.array([float(row[phase]) * 1e3 for _, row in bars])
            name = phase.removesuffix("_s").replace("_", " ")
            axes.barh(range(len(bars)), width, left=start, color=colour, height=0.7, label=name)
            start += width
        whole = [float(row["step_s"]) * 1e3 for _, row in bars]
        places = range(len(bars))
        axes.plot(whole, places, "|", color=INK, markersize=9, markeredgewidth=1.6, label="step of the slowest worker")
        axes.set_yticks(places, [name for name, _ in bars], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        if len(shown) < len(rows):
            axes.set_title(f"{len(shown)} of {len(rows)}: most workers", loc="right", fontsize=7.5, color=INK)

    bars_in_panel = min(MAX_BARS, int(ok.groupby(PANEL).size().max()))
    height = 1.3 + 0.2 * bars_in_panel
    return grid(ok, {"strategy · workers": draw}, "ms per step", height=height, note_width=BAR_NOTE_WIDTH)


def bar_label(curve: str, num_workers: int) -> str:
    """'ring-allreduce · 2', in lines of BAR_LABEL_WIDTH letters."""
    space = "\N{NO-BREAK SPACE}"  # no line ends here
    return fill(f"{curve}{space}·{space}{num_workers}", BAR_LABEL_WIDTH)


def _largest(rows: pd.DataFrame) -> pd.DataFrame:
    """The MAX_BARS rows with the most workers, in their order."""
    if len(rows) <= MAX_BARS:
        return rows
    return rows.sort_values("num_workers", ascending=False, kind="stable").iloc[:MAX_BARS].sort_index()


def batch_size(ok: pd.DataFrame) -> Figure:
    """Tokens per second against sequences per worker, a panel per strategy and a line style per precision."""
    most = ok[ok["num_workers"] == ok.groupby("place")["num_workers"].transform("max")]
    most = that_communicate(most)

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        for label, look, curve in curves(rows):
            for precision, line in curve.groupby("precision", sort=False):
                style = {**look, "linestyle": PRECISION_LINES[str(precision)]}
                points(axes, line, "tokens_per_s", "batch_size", label=f"{label}, {precision}", **style)
        size_axis(axes, sorted(int(n) for n in ok["batch_size"].unique()))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))

    return grid(most, {"tokens per second": draw}, "sequences per worker", panel=["place", "strategy"])


def loss_against_time(ok: pd.DataFrame, losses: pd.DataFrame) -> Figure:
    """Training loss against time, a line per curve at its most workers; medians over launches per step."""
    lines = losses.dropna(subset="loss").groupby(["cell", "step"])[["elapsed_s", "loss"]].median()
    ok = ok[ok["cell"].isin(lines.index.get_level_values("cell"))]

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        for label, look, curve in curves(rows):
            row = curve.iloc[-1]
            line = lines.loc[row["cell"]]
            marks: Any = {"markevery": (0.02, 0.12), "markersize": 4}  # shares of the diagonal of the axes
            axes.plot(
                line["elapsed_s"], line["loss"], linewidth=1.2, label=f"{label} · {row['num_workers']}", **look, **marks
            )
        axes.set_xlim(left=0)

    return grid(ok, {"training loss, nats per token": draw}, "seconds since the first step")


def front(ok: pd.DataFrame) -> Figure:
    """Time against bytes until the target loss, the Pareto front circled."""
    known = ok.dropna(subset=["time_to_loss_s", "bytes_to_loss"])

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        for label, look, curve in curves(rows):
            style: Any = {"color": look["color"], "marker": look["marker"], "linestyle": "", "label": label}
            axes.plot(curve["bytes_to_loss"] / 1e6, curve["time_to_loss_s"], **style)
        best = rows[rows["on_front"]]
        circle: Any = {"color": INK, "markersize": 13, "markerfacecolor": "none", "label": "Pareto front"}
        axes.plot(best["bytes_to_loss"] / 1e6, best["time_to_loss_s"], "o", **circle)
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))  # not as a power of ten
        axes.set_xlim(-0.1, 1.5 * rows["bytes_to_loss"].max() / 1e6 + 0.1)
        axes.set_ylim(bottom=0)

    panel = ["place", "target_loss"]
    return grid(known, {"seconds to the target loss": draw}, "MB sent by all ranks to the target loss", panel=panel)
