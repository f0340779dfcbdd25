"""The figure of the published corpus: predicted over measured speed with its band, a row per measurement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.config import BadInput
from bench.files import check_writable, write_whole
from bench.predict.published.ranges import ends
from bench.predict.published.score import Prediction
from bench.predict.published.table import as_csv, as_markdown
from bench.report.labels import LINE, TEXT, wrapped
from bench.report.looks import INK, MARKER, MARKERS, PAPER
from bench.report.panels import decorate
from bench.report.saving import KINDS, matplotlib_settings, save
from bench.report.sentences import capital
from strategies import catalogue
from strategies.catalogue import Entry

COLUMNS, MIN_ROWS = 2, 30  # of fewer rows, one column
WIDTH, FRAME = 5.0, 1.7  # inches: a column with its names; title, ticks and key
NAME_LETTERS = 38  # of a line of a row's name
GAP = 0.6  # lines between sources
TICKS = (0.25, 0.5, 1, 2, 4)
MOST = 8.0  # ratios beyond are drawn at the edge


class Line(NamedTuple):
    """A line of a column: its text, and the prediction that it shows; none in the heading of a source."""

    text: str
    prediction: Prediction | None

    @property
    def height(self) -> int:
        """Lines of text."""
        return len(self.text.splitlines())


def check_folder(out: Path) -> None:
    """Make the folder if there is none; BadInput if that is impossible, or if a file in it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out: {out} cannot be made: {error.strerror}") from None
    for path in _paths(out):
        check_writable(path)


def _paths(out: Path) -> list[Path]:
    return [out / f"published.{ending}" for ending in ("csv", "md", *KINDS)]


def write_folder(predictions: Sequence[Prediction], out: Path) -> list[Path]:
    """Write published.csv, published.md and the figure, as SVG, PNG and PDF; return their paths."""
    table, text, *pictures = _paths(out)
    write_whole(table, as_csv(predictions))
    write_whole(text, as_markdown(predictions))
    save(make_figure(predictions), *pictures)
    return [table, text, *pictures]


def make_figure(predictions: Sequence[Prediction]) -> Figure:
    """Draw the rows by source, in columns: a marker is the middle of the prediction over the measurement.

    A bar is its band. Colour is the strategy and marker the placement of servers, as in a report; a hollow marker is a
    measurement beyond its band.
    """
    columns = columns_of(predictions)
    height = LINE * max(map(_lines, columns))
    with matplotlib_settings():
        size = (WIDTH * len(columns), height + FRAME)
        figure = Figure(figsize=size, layout="constrained", facecolor=PAPER)
        for number, sources in enumerate(columns, start=1):
            _draw(figure.add_subplot(1, len(columns), number), sources, height / LINE)
        held = sum(each.holds for each in predictions)
        title = f"{held} of {len(predictions)} measurements lie in the 90 % band of their prediction"
        figure.suptitle(title, fontsize=TEXT, fontweight="bold", color=INK, x=0.01, ha="left")
        key = _key(predictions)
        figure.legend(
            handles=key, loc="outside lower center", ncols=2, frameon=False, fontsize=TEXT, labelcolor=INK,
        )  # fmt: skip
    return figure


def columns_of(predictions: Sequence[Prediction]) -> list[list[list[Line]]]:
    """Sources in columns of about equal height; each source is its heading and a line per measurement."""
    sources = []
    for study in dict.fromkeys(each.row.study for each in predictions):
        rows = [each for each in predictions if each.row.study == study]
        held = sum(each.holds for each in rows)
        heading = Line(wrapped(f"{study}: {held} of {len(rows)} in their band", NAME_LETTERS), None)
        sources.append([heading, *(Line(wrapped(each.row.label, NAME_LETTERS), each) for each in rows)])
    count = COLUMNS if len(predictions) >= MIN_ROWS else 1
    columns: list[list[list[Line]]] = [[]]
    for source in sources:
        if len(columns) < count and _lines([*columns[-1], source]) > _lines(sources) / count + _lines([source]) / 2:
            columns.append([])
        columns[-1].append(source)
    return columns


def _lines(sources: Sequence[Sequence[Line]]) -> float:
    """How many lines of text these sources need above each other."""
    return sum(GAP + sum(line.height for line in source) for source in sources)


def _draw(axes: Axes, sources: Sequence[Sequence[Line]], lines: float) -> None:
    """Draw the rows of a column that is so many lines high."""
    at, ticks = 0.0, dict[float, Line]()
    for source in sources:
        at += GAP
        for line in source:
            ticks[at + line.height / 2] = line
            if line.prediction:
                _row(axes, at + line.height / 2, line.prediction)
            at += line.height
    axes.axvline(1, color=INK, linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(1 / MOST, MOST)
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.set_xticks([], minor=True)
    axes.set_yticks(list(ticks), [line.text for line in ticks.values()], fontsize=TEXT, linespacing=1.0)
    axes.set_ylim(lines, 0)
    for tick, line in zip(axes.yaxis.get_major_ticks(), ticks.values(), strict=True):
        tick.gridline.set_visible(line.prediction is not None)
        tick.tick1line.set_visible(False)
        tick.label1.set_fontweight("normal" if line.prediction else "bold")
    axes.set_xlabel("predicted ÷ measured speed")
    decorate(axes, "")


def _row(axes: Axes, at: float, each: Prediction) -> None:
    """Draw one measurement: its band as a bar, the middle of its prediction as a marker, at the edge if beyond."""
    colour, marker = look_of(each)
    ends = [min(MOST, max(1 / MOST, over_measured(each, value))) for value in (each.low, each.high, each.middle)]
    axes.plot(ends[:2], [at, at], color=colour, linewidth=4, alpha=0.35, solid_capstyle="butt")
    face = colour if each.holds else PAPER
    axes.plot([ends[2]], [at], marker, color=colour, markerfacecolor=face, markersize=5, clip_on=False)


def arm_of(each: Prediction) -> tuple[Entry, str]:
    """A measurement's strategy and the placement of its servers; where a source leaves a choice, the first."""
    arm = each.row.arm
    known = {**{key: ends(found)[0] for key, found in arm.ranges.items()}, **arm.stated}
    return catalogue.find(str(known["strategy"])), str(known.get("placement", "dedicated"))


def look_of(each: Prediction) -> tuple[str, str]:
    """The colour of a measurement's strategy, and the marker of its servers' placement."""
    entry, placement = arm_of(each)
    return entry.colour, MARKERS[placement] if entry.has_servers else MARKER


def over_measured(each: Prediction, value: float) -> float:
    """A predicted value over the measured one, as speeds: above 1 the prediction is faster."""
    ratio = value / each.row.value
    return 1 / ratio if each.row.measure == "step_s" else ratio


def _key(predictions: Sequence[Prediction]) -> list[Line2D]:
    """An entry per colour and marker, and what a bar and a hollow marker are."""
    bare: Any = {"linestyle": "", "markersize": 5}
    named = {_name_of(each): look_of(each) for each in predictions}
    key = [Line2D([], [], color=colour, marker=marker, label=name, **bare) for name, (colour, marker) in named.items()]
    hollow = Line2D([], [], color=INK, marker="o", markerfacecolor=PAPER, label="measured beyond its band", **bare)
    return [*key, Line2D([], [], color=INK, linewidth=4, alpha=0.35, label="90 % band of the prediction"), hollow]


def _name_of(each: Prediction) -> str:
    entry, placement = arm_of(each)
    if entry.has_servers:
        return f"{placement} servers".replace("mixed", "dedicated and colocated")
    return "ring-allreduce" if entry.family == catalogue.RING else capital(entry.title)
