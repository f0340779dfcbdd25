"""The phases of a step as stacked bars, a row per cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.labels import LINE, TEXT, wrapped
from bench.report.looks import INK, PANEL, PAPER, PHASES, curves
from bench.report.panels import SIZE, decorate, largest_settings, say_how_many, shown_labels, size_name, title_of

MAX_BARS = 30  # of more, those at the largest size of each curve of a setting are shown
WIDTH, BAR, FRAME = 7.6, 0.2, 0.9  # inches: the figure, a bar whose name is one line, the frame of a panel
BAR_LETTERS = 36  # of a line of a bar's name
MIN_SHARE = 0.0005  # of the longest bar; a shorter phase cannot be seen and is not in the key


def step_time(ok: pd.DataFrame) -> Figure:
    """Phases of a step as a stacked bar per cell; the tick is the step time of the slowest worker."""
    settings = list(to_show(ok).groupby(PANEL, sort=False))
    shown = largest_settings(settings)
    heights = [FRAME + height_of_bars(rows) for _, rows in shown]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.5), layout="constrained", facecolor=PAPER)
    panels = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (key, rows) in zip(panels, shown, strict=True):
        names = _draw(axes, rows)
        every = int((ok[PANEL] == list(key)).all(axis=1).sum())
        part = [f"each at its largest size ({len(rows)} of {every} cells)"] if len(rows) < every else []
        note = "; ".join([*part, shown_labels(rows)])
        decorate(axes, title_of(ok, dict(zip(PANEL, key, strict=True))), note, WIDTH, names)
    panels[-1].set_xlabel("ms per step")
    say_how_many(figure, len(shown), len(settings))
    _key(figure)
    return figure


def to_show(ok: pd.DataFrame) -> pd.DataFrame:
    """The rows, or if they are more than MAX_BARS those of the largest size of each curve of a setting."""
    largest = ok[SIZE] == ok.groupby([*PANEL, "curve"])[SIZE].transform("max")
    return ok if len(ok) <= MAX_BARS else ok[largest]


def bars_of(rows: pd.DataFrame) -> list[tuple[str, dict[Any, Any]]]:
    """The name of each bar of a setting, in lines of BAR_LETTERS, and its cell."""
    unit = "rank" if "rank" in size_name(rows) else "node"
    return [
        (str(row[SIZE]) if place else wrapped(f"{label}, {row[SIZE]} {unit}{'s' * (row[SIZE] > 1)}", BAR_LETTERS), row)
        for label, _, curve in curves(rows)
        for place, row in enumerate(curve.sort_values(SIZE).to_dict("records"))
    ]


def height_of_bars(rows: pd.DataFrame) -> float:
    """Inches that the bars of a setting need: each as much as the name with the most lines."""
    names = [name for name, _ in bars_of(rows)]
    return len(names) * max(BAR, *(LINE * len(name.splitlines()) + 0.03 for name in names))


def _draw(axes: Axes, rows: pd.DataFrame) -> list[str]:
    """Draw the bars of a setting; return their names."""
    bars = bars_of(rows)
    start = np.zeros(len(bars))
    longest = float(rows["step_s"].max()) * 1e3
    for phase, colour in PHASES.items():
        width = np.array([float(row[phase]) * 1e3 for _, row in bars])
        visible = np.nanmax(width, initial=0) > MIN_SHARE * longest
        name = phase_name(phase) if visible else "_"
        axes.barh(range(len(bars)), width, left=start, color=colour, height=0.7, label=name)
        start += np.nan_to_num(width)
    whole = [float(row["step_s"]) * 1e3 for _, row in bars]
    mark: Any = {"color": INK, "markersize": 9, "markeredgewidth": 1.6}
    axes.plot(whole, range(len(bars)), "|", label="step of the slowest worker", **mark)
    names = [name for name, _ in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=TEXT, linespacing=1.0)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(left=0)
    return names


def _key(figure: Figure) -> None:
    """The colours of the phases, once below all panels."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    order = [name for name in map(phase_name, PHASES) if name in entries]
    order += [name for name in entries if name not in order]
    figure.legend(
        [entries[name] for name in order], order, loc="outside lower center", ncols=3, frameon=False,
        labelcolor=INK, fontsize=TEXT,
    )  # fmt: skip


def phase_name(phase: str) -> str:
    """'exposed communication' for exposed_communication_s."""
    return phase.removesuffix("_s").replace("_", " ")
