"""Parts of a figure: panels in columns with titles and notes, their axes, and curves. pyplot is not used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from bench.report.cells import PLACES
from bench.report.labels import TEXT, height_of_names, name_curves, named_lines, separate
from bench.report.looks import INK, PANEL, PAPER, curves, that_communicate
from strategies import catalogue

WIDTH, HEIGHT = 4.8, 2.9  # of a panel with the names of its curves, inches
FRAME = 0.95  # inches of that height for title, note and the labels of the x axis
LETTER = 0.076  # inches of a letter of a note
ROW_LETTER = 0.072  # and of the name of a row
MAX_PANELS = 12  # settings in one figure
TICKS = ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.7, 2, 2.4, 3, 4, 5, 6, 8))  # of a log axis, by coarseness
APART = 0.055  # share of a y axis between ticks whose numbers do not touch

SAME = 0.05  # log ratio

Draw = Callable[[Axes, pd.DataFrame], None]


def grid(
    ok: pd.DataFrame, sides: dict[str, Draw], x: str, *,
    panel: list[str] = PANEL, all_outside: bool = False, key: str = "",
) -> Figure:  # fmt: skip
    """A figure with a panel per setting (the values of the columns `panel`) and side, the curves named beside them.

    `sides` maps a y label to the function that draws. Of more than MAX_PANELS settings those with the most cells are
    drawn, and a line above says so. `key` is written under every title.
    """
    settings = list(ok.groupby(panel, sort=False))
    shown = largest_settings(settings)
    panels = [(key, rows, side) for key, rows in shown for side in sides]
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    names = max(height_of_names([label for label, _, _ in curves(rows)]) for _, rows in shown)
    inside = max(HEIGHT - FRAME, names + 0.3)
    figure = Figure(figsize=(WIDTH * columns, (inside + FRAME) * lines), layout="constrained", facecolor=PAPER)
    for number, (setting, rows, side) in enumerate(panels, start=1):
        axes = figure.add_subplot(lines, columns, number)
        sides[side](axes, rows)
        note = "; ".join(filter(None, (key, shown_labels(rows))))
        decorate(axes, title_of(ok, dict(zip(panel, setting, strict=True))), note)
        axes.set_xlabel(x if x != SIZE else size_name(rows))
        axes.set_ylabel(side)
        finish(axes, inside, all_outside=all_outside)
    say_how_many(figure, len(shown), len(settings))
    return figure


def largest_settings(settings: Sequence[tuple[Any, pd.DataFrame]]) -> list[tuple[Any, pd.DataFrame]]:
    """Return the MAX_PANELS settings with the most cells, in the given order."""
    largest = sorted(settings, key=lambda setting: -len(setting[1]))[:MAX_PANELS]
    return [setting for setting in settings if any(setting[0] == other[0] for other in largest)]


def say_how_many(figure: Figure, shown: int, settings: int) -> None:
    """Write above the panels that some settings are not drawn, if so."""
    if shown < settings:
        note = f"The {shown} of {settings} settings with the most cells; the tables have all."
        figure.suptitle(note, fontsize=TEXT, style="italic", color=INK, x=0.01, ha="left")


def finish(axes: Axes, height: float, **names: Any) -> None:
    """Separate and name the curves of a panel whose limits are set; height of the panel in inches."""
    separate(axes)
    name_curves(axes, height, **names)


SIZE = "world_size"  # the x axis of scaling: nodes, or ranks where a node has several


def size_name(rows: pd.DataFrame) -> str:
    """What `world_size` counts in these rows: nodes, emulated nodes, or ranks."""
    if (rows["num_nodes"] != rows[SIZE]).any():
        return "ranks on one machine" if set(rows["place"]) == {PLACES[2]} else "ranks"
    return "emulated nodes" if set(rows["place"]) == {PLACES[1]} else "nodes"


def that_scale(ok: pd.DataFrame, panel: list[str] = PANEL, column: str = "tokens_per_s") -> pd.DataFrame:
    """The rows of the settings in which some curve has two sizes or more; a panel of single points shows nothing."""
    known = ok[ok[column].notna()]
    sizes = known.groupby([*panel, "curve"])[SIZE].nunique()
    most = sizes.groupby(panel).max()
    return known[(known[panel].merge(most.rename("most").reset_index(), on=panel, how="left")["most"] > 1).to_numpy()]


def title_of(ok: pd.DataFrame, setting: dict[str, Any]) -> str:
    """'fp32, 8 sequences per worker', after the place unless everything ran on one machine."""
    words = {
        "place": "{}", "precision": "{}", "batch_size": "{:g} sequences per worker", "num_workers": "{} workers",
        "global_batch_size": "{} sequences in the global batch", "target_loss": "until loss {:.3g}",
    }  # fmt: skip
    shown = [field for field in setting if field != "place" or set(ok["place"]) != {"one machine"}]
    named = {**setting}
    if "strategy" in setting:
        named["strategy"] = catalogue.find(str(setting["strategy"])).title
    return ", ".join(words.get(field, "{}").format(named[field]) for field in shown)


def decorate(axes: Axes, title: str, note: str = "", width: float = WIDTH, names: Sequence[str] = ()) -> None:
    """Set the title, the note under it, the grid and the colours of a panel of that width, inches.

    Title and note begin above the names of rows, if its y axis has names.
    """
    letters = int((width - 0.3) / LETTER)
    note, title = fill(note, letters), fill(title, letters - 5)
    left = -ROW_LETTER * max((len(line) for name in names for line in name.splitlines()), default=5)
    pad = 6 + 11 * len(note.splitlines())
    above = axes.set_title(title, loc="left", fontsize=TEXT, fontweight="bold", color=INK, pad=pad)
    above.set_transform(above.get_transform() + ScaledTranslation(left, 0, axes.figure.dpi_scale_trans))
    if note:
        axes.annotate(
            note, (0, 1), xycoords="axes fraction", xytext=(72 * left, 4), textcoords="offset points",
            fontsize=TEXT, style="italic", color=INK, linespacing=1.0,
        )  # fmt: skip
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
    """'loopback; oversubscribed at 4 nodes': the labels of the communicating rows, and where unless on all."""
    communicating = that_communicate(rows)
    of_row = (communicating if len(communicating) else rows)["labels"].str.split()
    unit = size_name(rows).split()[-1] if "nodes" in size_name(rows) else "ranks"
    words = []
    for label in sorted(set(of_row.explode().dropna())):
        where = of_row.map(lambda labels, label=label: label in labels)
        sizes = ", ".join(str(n) for n in sorted(rows.loc[where.index[where], SIZE].unique()))
        words.append(label.replace("_", " ") + ("" if where.all() else f" at {sizes} {unit}"))
    if "disturbed" in rows and rows["disturbed"].any():
        most = rows.loc[rows["disturbed"], "disturbance_of_rejected"].max()
        words.append("hollow: disturbed" + (f" by up to {most:.1%}" if pd.notna(most) else ""))
    return "; ".join(words)


def size_axis(axes: Axes, sizes: Sequence[int], width: float = WIDTH) -> None:
    """A log axis with ticks at those of the sizes whose numbers do not touch, in a panel of that width, inches."""
    sizes = sorted({int(size) for size in sizes})
    axes.set_xscale("log", base=2)
    margin = max(1.06, (sizes[-1] / sizes[0]) ** 0.06) if len(sizes) > 1 else 2
    axes.set_xlim(sizes[0] / margin, sizes[-1] * margin)
    apart = (len(str(sizes[-1])) + 1) * ROW_LETTER / (width - 1.9)
    _ticks(axes.xaxis, sizes, np.log(np.array(axes.get_xlim())), "{:.0f}", apart)


def rate_axis(axes: Axes, values: Sequence[float]) -> None:
    """A log axis for positive numbers that span these values, with ticks at round numbers."""
    low, high = min(values) / 1.25, max(values) * 1.12
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    log_ticks(axes.yaxis, (low, high), "{:,.0f}" if low >= 10 else "{:,.3g}")


def log_ticks(axis: Any, limits: tuple[float, float], words: str, apart: float = APART) -> None:
    """Ticks at round numbers on a log axis with these limits, `apart` (a share of the axis) at least."""
    low, high = limits
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in TICKS:
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) > 2:
            break
    else:
        ticks = [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    _ticks(axis, ticks, np.log([low, high]), words, apart)


def _ticks(axis: Any, ticks: Sequence[float], limits: Any, words: str, apart: float = APART) -> None:
    """Ticks on a log axis, the largest first; left out is a tick nearer than `apart` (a share) to the last one."""
    kept: list[float] = []
    for tick in reversed(ticks):
        if not kept or np.log(kept[-1] / tick) > apart * (limits[1] - limits[0]):
            kept.append(tick)
    axis.set_major_locator(FixedLocator(sorted(kept)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: words.format(value)))


def draw_throughput(axes: Axes, rows: pd.DataFrame, x: str = SIZE, width: float = WIDTH) -> None:
    """A curve per strategy and variant on log axes, and a straight ideal line: size × the baseline's rate."""
    sizes = np.sort(rows[x].unique()).astype("float64")
    for number, rate in enumerate(baseline_rates(rows)):
        name = "_ideal" if number else "ideal"
        axes.plot(sizes, rate * sizes, color=INK, linestyle=":", linewidth=1, label=name, zorder=1.8)
    for label, look, curve in curves(rows):
        points(axes, curve, "tokens_per_s", x, label=label, **look)
    size_axis(axes, list(rows[x]), width)
    rate_axis(axes, [*_shown(axes)])


def baseline_rates(rows: pd.DataFrame) -> list[float]:
    """Tokens per second of the baselines of the rows; rates within SAME of each other are of one baseline.

    A speedup is a mean over repeats, so that rate ÷ speedup differs a little between rows of one baseline; that of
    the baseline itself is exact.
    """
    nearest = rows.assign(distance=(rows["speedup"] - 1).abs()).sort_values("distance", kind="stable")
    found: list[float] = []
    for rate in (nearest["tokens_per_s"] / nearest["speedup"]).dropna():
        if all(abs(np.log(rate / other)) > SAME for other in found):
            found.append(float(rate))
    return found


def _shown(axes: Axes) -> list[float]:
    values = np.concatenate([np.asarray(line.get_ydata(), dtype="float64") for line in named_lines(axes)])
    return [float(value) for value in values[np.isfinite(values) & (values > 0)]]


def points(axes: Axes, curve: pd.DataFrame, column: str, x: str = SIZE, label: str = "", **look: Any) -> None:
    """Medians joined by lines, with their intervals as error bars where there is one."""
    curve = curve.sort_values(x)
    middle, low, high = (curve[f"{column}{end}"].astype("float64").to_numpy() for end in ("", "_low", "_high"))
    if np.isfinite(middle).any():
        places = curve[x].astype("float64").to_numpy()
        hollow = curve["disturbed"].to_numpy(dtype=bool) if "disturbed" in curve else np.zeros(len(curve), dtype=bool)
        style: Any = {"markersize": 5, "linewidth": 1.6, **look}
        axes.plot(places, middle, **style, markevery=list(np.flatnonzero(~hollow)), label=label)
        if hollow.any():
            bare: Any = {**style, "linestyle": "", "markerfacecolor": PAPER}
            axes.plot(places[hollow], middle[hollow], **bare, label=f"_{label}")
        gap = np.full(len(places), np.nan)
        bars = np.column_stack([low, high, gap]).ravel()
        axes.plot(np.repeat(places, 3), bars, color=look["color"], linewidth=1, label=f"_{label}")
