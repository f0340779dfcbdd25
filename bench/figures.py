"""The figures of a report, drawn from a summary table; every Figure stands alone, pyplot is never used.

One panel per (precision, batch_size). A strategy has one colour everywhere (Okabe and Ito's palette, safe for
colour-blind readers); what else varies in the sweep is told apart by line and marker. Bars are the 95 %
interval over launches; a panel names the labels (oversubscribed, …) that its rows carry.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.config import COMMUNICATING, GPTShape
from bench.stats import COMMUNICATION, HARNESS, varying

INK, PAPER = "#1b1b1f", "#ffffff"  # report.py turns these two into the reader's light or dark colours
NAMES = {
    "local": "local",
    "independent": "independent workers",
    "parameter_server": "parameter server",
    "ring_allreduce": "ring-allreduce",
    "mpi_ring": "ring on mpi4py",
    "ddp": "PyTorch DDP",
}
COLOURS = {
    "local": INK, "independent": "#8c8c8c", "parameter_server": "#d55e00", "ring_allreduce": "#0072b2",
    "mpi_ring": "#56b4e9", "ddp": "#009e73",
}  # fmt: skip
PHASES = {
    "data_s": "#9a9a9a", "forward_s": "#56b4e9", "backward_s": "#e69f00",
    "exposed_communication_s": "#cc79a7", "optimizer_s": "#f0e442",
}  # fmt: skip
LINES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)))
NOTE_WIDTH = 52  # letters that fit above a panel beside long tick labels
IDEAL = "ideal: workers × baseline"
MARKERS = "osD^vPX*"
KINDS = ("svg", "png", "pdf")
DESCRIPTIONS = {
    "throughput": "Tokens per second against workers; dotted: workers × baseline. Bars: 95 % interval.",
    "scaling_efficiency": "Share of ideal weak scaling against workers; hollow: servers count as ranks too.",
    "communication_volume": "Megabytes sent per step against workers: lines predicted, markers counted.",
    "step_time": "Phases of one step as stacked bars; the tick is the whole step of the slowest worker.",
}
PANEL = ["precision", "batch_size"]
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "psring", "font.size": 9.0}

Curve = tuple[str, dict[str, Any], pd.DataFrame]
Draw = Callable[[Axes, pd.DataFrame], None]


def write_figures(summary: pd.DataFrame, folder: Path) -> list[str]:
    """Write figures/<name>.svg, .png and .pdf for every figure the summary has numbers for; return names."""
    (folder / "figures").mkdir(exist_ok=True)
    figures = make_figures(summary)
    # No date and no random ids: the same runs give the same files.
    no_date: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "png": {}, "pdf": {"CreationDate": None}}
    with matplotlib.rc_context(STYLE):
        for name, figure in figures.items():
            figure.draw_without_rendering()  # one layout serves all kinds of file
            figure.set_layout_engine("none")
            for kind, metadata in no_date.items():
                partial = folder / "figures" / f"{name}.{kind}.partial"
                figure.savefig(partial, format=kind, metadata=metadata, dpi=150)
                partial.replace(partial.with_suffix(""))
    return list(figures)


def make_figures(summary: pd.DataFrame) -> dict[str, Figure]:
    """The figures by name; without the ones that no row has numbers for."""
    ok = summary[summary["status"] == "ok"]
    makers = {
        "throughput": (throughput, "tokens_per_s"),
        "scaling_efficiency": (scaling_efficiency, "scaling_efficiency"),
        "communication_volume": (communication_volume, "bytes_sent_per_worker_per_step"),
        "step_time": (step_time, "step_s"),
    }
    with matplotlib.rc_context(STYLE):
        return {name: make(ok) for name, (make, needs) in makers.items() if ok[needs].notna().any()}


def throughput(ok: pd.DataFrame) -> Figure:
    """Tokens per second against workers, beside n times the baseline."""

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        _ideal_throughput(axes, rows)
        for label, look, curve in curves(ok, rows):
            _points(axes, curve, "tokens_per_s", label=label, **look)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))

    return _panels(ok, draw, "workers", "tokens per second")


def scaling_efficiency(ok: pd.DataFrame) -> Figure:
    """Share of ideal weak scaling that is left, per worker and, where servers are ranks too, per rank."""

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        axes.axhline(1, color=INK, linestyle=":", linewidth=1, label="ideal")
        for label, look, curve in curves(ok, rows):
            _points(axes, curve, "scaling_efficiency", label=label, **look)
            if (curve["num_servers"] > 0).any():
                hollow = {**look, "markerfacecolor": "none", "linewidth": 0.8, "alpha": 0.75}
                _points(axes, curve, "scaling_efficiency_per_rank", label=f"{label}, per rank", **hollow)

    return _panels(ok, draw, "workers", "scaling efficiency (1 = ideal)")


def communication_volume(ok: pd.DataFrame) -> Figure:
    """Megabytes sent per step against workers: the closed form as a line, what was counted as markers."""

    def draw(axes: Axes, rows: pd.DataFrame, role: str = "worker") -> None:
        column = f"bytes_sent_per_{role}_per_step"
        talking = rows[rows["strategy"].isin(COMMUNICATING)]
        for label, look, curve in curves(ok, talking):
            # Two strategies may send the same: later ones are finer, so that earlier ones show around them.
            weight = len(COMMUNICATING) - COMMUNICATING.index(curve["strategy"].iloc[0])
            line = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 0.2 + 0.9 * weight}
            dot = {"color": look["color"], "marker": look["marker"], "markersize": 2 + 2 * weight}
            sizes = curve[[column, f"{column}_predicted"]].astype("float64") / 1e6
            if sizes.notna().any(axis=None):
                workers = curve["num_workers"]
                axes.plot(workers, sizes[f"{column}_predicted"], **line, label=f"{label}, predicted")
                axes.plot(workers, sizes[column], **dot, linestyle="", label=f"{label}, counted")

    def draw_server(axes: Axes, rows: pd.DataFrame) -> None:
        draw(axes, rows, "server")

    sides: dict[str, Draw] = {"MB sent per worker per step": draw}
    if ok["bytes_sent_per_server_per_step_predicted"].notna().any():
        sides["MB sent per server per step"] = draw_server
    return _grid(ok, sides, "workers")


def step_time(ok: pd.DataFrame) -> Figure:
    """Where one step's time goes, a bar per cell; the tick is the whole step of the slowest worker."""

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        bars = [
            (str(row["num_workers"]) if place else f"{label} · {row['num_workers']}", row)
            for label, _, curve in curves(ok, rows)
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
        axes.plot(whole, places, "|", color=INK, markersize=9, markeredgewidth=1.6, label="whole step")
        axes.set_yticks(places, [name for name, _ in bars], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(left=0)

    bars_in_panel = int(ok.groupby(PANEL).size().max())
    return _panels(ok, draw, "ms per step", "strategy · workers", height=1.1 + 0.2 * bars_in_panel)


def curves(ok: pd.DataFrame, rows: pd.DataFrame) -> Iterator[Curve]:
    """The curves of a panel: label, look and rows in order of workers. A curve looks alike in every panel."""
    fields = ["strategy", "num_servers", *told_apart(ok)]
    variants: dict[str, Iterator[int]] = {name: itertools.count() for name in NAMES}
    for key, every in ok.groupby(fields, sort=False, dropna=False):
        strategy = str(every["strategy"].iloc[0])
        variant = next(variants[strategy])
        look = {
            "color": COLOURS[strategy], "linestyle": LINES[variant % len(LINES)],
            "marker": MARKERS[(list(NAMES).index(strategy) + 5 * variant) % len(MARKERS)],
        }  # fmt: skip
        here = rows.loc[rows.index.intersection(every.index)]
        if len(here):
            yield curve_label(dict(zip(fields, key, strict=True))), look, here.sort_values("num_workers")


def told_apart(ok: pd.DataFrame) -> list[str]:
    """Knobs that vary in the sweep and have neither an axis, a panel nor a colour."""
    shown = {"strategy", "num_workers", "num_servers", *PANEL}
    talking = varying(ok[ok["strategy"].isin(COMMUNICATING)])
    fields = [field for field in varying(ok) if field not in shown | (HARNESS - {"model"})]
    fields = [field for field in fields if field not in COMMUNICATION or field in talking]
    shape = [name for name in GPTShape.model_fields if name in ok]
    if ok.groupby("model")[shape].nunique().le(1).all(axis=None):  # the model's name says it all
        fields = [field for field in fields if field not in shape]
    return fields


def curve_label(values: dict[str, Any]) -> str:
    """'parameter server, 2 servers, fp16 wire': what makes this curve another one."""
    words = [NAMES[values["strategy"]]]
    if values["num_servers"]:
        words.append(f"{values['num_servers']} server" + "s" * (values["num_servers"] > 1))
    for field, value in values.items():
        if field in COMMUNICATION and values["strategy"] not in COMMUNICATING:
            continue  # such a knob says nothing of a strategy that sends nothing
        if field == "wire_dtype":
            words.append(f"{value} wire")
        elif field in ("launcher", "model"):
            words.append(str(value))
        elif field not in ("strategy", "num_servers"):
            words.append(f"{field} {value}")
    return ", ".join(words)


def _points(axes: Axes, curve: pd.DataFrame, column: str, **look: Any) -> None:
    """Medians with their intervals; a point of one launch has no bar."""
    middle = curve[column].astype("float64")
    low, high = (curve[f"{column}_{end}"].astype("float64") for end in ("low", "high"))
    if middle.notna().any():
        bars = np.nan_to_num(np.vstack([middle - low, high - middle]))
        axes.errorbar(curve["num_workers"], middle, yerr=bars, capsize=3, markersize=5, elinewidth=1, **look)


def _ideal_throughput(axes: Axes, rows: pd.DataFrame) -> None:
    """A line through n times the rate of each distinct baseline."""
    rates = sorted({float(rate) for rate in (rows["tokens_per_s"] / rows["speedup"]).dropna().round(6)})
    workers = np.array(sorted(rows["num_workers"].unique()))
    for rate in rates:
        axes.plot(workers, rate * workers, color=INK, linestyle=":", linewidth=1, label=IDEAL, zorder=5)


def _panels(ok: pd.DataFrame, draw: Draw, x: str, y: str, height: float = 3.0) -> Figure:
    """A figure of one panel per (precision, batch_size)."""
    return _grid(ok, {y: draw}, x, height)


def _grid(ok: pd.DataFrame, sides: dict[str, Draw], x: str, height: float = 3.0) -> Figure:
    """A figure of panels in two columns, every panel drawn once per side, with one legend below."""
    panels = [(key, rows, side) for key, rows in ok.groupby(PANEL, sort=False) for side in sides]
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    size = (4.8 * columns + 0.4, height * lines + 1.0)
    figure = Figure(figsize=size, layout="constrained", facecolor=PAPER)
    for number, ((precision, batch_size), rows, side) in enumerate(panels, start=1):
        axes = figure.add_subplot(lines, columns, number)
        sides[side](axes, rows)
        _dress(axes, f"{precision}, {batch_size} sequences per worker", fill(shown_labels(rows), NOTE_WIDTH))
        axes.set_xlabel(x)
        axes.set_ylabel(side)
        if x == "workers":
            _worker_axis(axes, sorted(int(n) for n in ok["num_workers"].unique()))
    _legend(figure)
    return figure


def _dress(axes: Axes, title: str, labels: str) -> None:
    axes.set_title(title, loc="left", fontsize=9.5, fontweight="bold", color=INK, pad=6 + 10 * len(labels.splitlines()))
    if labels:
        axes.text(0, 1.02, labels, transform=axes.transAxes, fontsize=7.5, style="italic", color=INK)
    axes.set_facecolor(PAPER)
    axes.grid(axis="both", color="#8c8c8c", alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.tick_params(colors=INK)
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


def _worker_axis(axes: Axes, workers: list[int]) -> None:
    """Whole workers as ticks, doublings evenly spaced when the range is wide; the other axis from zero."""
    if workers[-1] / workers[0] > 4:
        axes.set_xscale("log", base=2)
        axes.set_xlim(workers[0] / 1.2, workers[-1] * 1.2)
    else:
        margin = 0.06 * (workers[-1] - workers[0]) or 0.5
        axes.set_xlim(workers[0] - margin, workers[-1] + margin)
    axes.xaxis.set_major_locator(FixedLocator(workers))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:.0f}"))
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.05)


def _legend(figure: Figure) -> None:
    """One legend for all panels, every label once."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if entries:
        figure.legend(
            list(entries.values()), list(entries), loc="outside lower center",
            ncols=2 if max(map(len, entries)) > 40 else 3, frameon=False, labelcolor=INK, fontsize=8,
        )  # fmt: skip
