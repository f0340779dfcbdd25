"""Curves that a reader can tell apart: names beside their ends, and coinciding curves side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from bench.report.looks import INK, PAPER

LINE = 0.165  # inches, of a line of text of TEXT points
TEXT = 9.0
LETTERS = 17  # of a name beside a curve
NEAR = 0.03  # curves nearer than this share of the panel's height coincide
SIDE = 4.0  # points between markers of coinciding curves
DASH = 3.0  # line widths, of a dash of the second and later of them
MAX_LINES = 4  # of a name; the tables have it whole
INNER = 0.6  # a curve that ends before this share of the width has its name beside its last point

Numbers = npt.NDArray[np.float64]


def named_lines(axes: Axes) -> list[Line2D]:
    """The curves of a panel that have a name."""
    return [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]


def height_of_names(names: Sequence[str], letters: int = LETTERS) -> float:
    """Inches that these names need above each other, in lines of so many letters."""
    return LINE * sum(len(wrapped(name, letters).splitlines()) for name in names)


def wrapped(name: str, letters: int = LETTERS) -> str:
    """A name in at most MAX_LINES lines of so many letters."""
    return fill(name, letters, max_lines=MAX_LINES, placeholder="…")


def in_panel(axes: Axes, line: Line2D) -> Numbers:
    """The known points of a line as shares of the panel's width and height, (n, 2)."""
    xy = np.asarray(line.get_xydata(), dtype="float64")
    known = xy[np.isfinite(xy).all(axis=1)]
    shares = axes.transLimits.transform(axes.transScale.transform(known)) if len(known) else known
    return np.asarray(shares, dtype="float64")


def separate(axes: Axes) -> None:
    """Draw coinciding curves side by side, all but the first dashed. The limits of the axes must be set."""
    lines = [line for line in named_lines(axes) if line.get_marker() not in ("", "None")]
    others = [line for line in axes.get_lines() if line not in lines]
    for group in coinciding([in_panel(axes, line) for line in lines]):
        for place, number in enumerate(group):
            line = lines[number]
            aside = (place - (len(group) - 1) / 2) * SIDE / 72
            shift = ScaledTranslation(aside, 0, axes.figure.dpi_scale_trans)
            for one in (line, *(other for other in others if other.get_label() == f"_{line.get_label()}")):
                one.set_transform(axes.transData + shift)
            if line.get_linestyle() != "None":  # in turn, so that those that lie on each other can all be seen
                dashes = (place * DASH, (DASH, (len(group) - 1) * DASH))
                line.set_linestyle(dashes if place else "-")


def coinciding(curves: Sequence[Numbers]) -> list[list[int]]:
    """The groups of two or more curves, given in shares of a panel, that are NEAR each other wherever both are."""
    group = list(range(len(curves)))
    for i, one in enumerate(curves):
        for j, other in enumerate(curves[:i]):
            at = {round(x, 3): y for x, y in other}
            gaps = [abs(y - at[round(x, 3)]) for x, y in one if round(x, 3) in at]
            if gaps and max(gaps) < NEAR:
                group = [group[j] if old == group[i] else old for old in group]
    groups = [[k for k, own in enumerate(group) if own == number] for number in sorted(set(group))]
    return [members for members in groups if len(members) > 1]


def name_curves(axes: Axes, height: float, *, letters: int = LETTERS, all_outside: bool = False) -> None:
    """Write each curve's name to the right of the panel, `height` inches high, and lead a line to it.

    The name of a curve that ends further left is written beside its end, unless `all_outside` or others are in its way.
    """
    ends = {line: in_panel(axes, line) for line in named_lines(axes)}
    last = {line: points[points[:, 0].argmax()] for line, points in ends.items() if len(points)}
    name = {line: wrapped(str(line.get_label()), letters) for line in last}
    needed = {line: LINE * len(name[line].splitlines()) / height for line in last}
    inside = [] if all_outside else [line for line, (x, _) in last.items() if x < INNER]
    if _places(inside, last, needed) != [last[line][1] for line in inside]:
        inside = []
    outside = [line for line in last if line not in inside]
    text: Any = {"xycoords": "axes fraction", "fontsize": TEXT, "color": INK, "linespacing": 1.0}
    for line, y in zip(outside, _places(outside, last, needed), strict=True):
        _lead(axes, line, (float(last[line][0]), float(last[line][1])), y)
        axes.annotate(name[line], (1.09, y), va="center", annotation_clip=False, **text)
    paper = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.5}
    for line in inside:
        beside: Any = {"xytext": (6, -3), "textcoords": "offset points"}
        axes.annotate(name[line], last[line], va="top", bbox=paper, zorder=1.5, **beside, **text)


def _places(lines: Sequence[Line2D], last: Mapping[Line2D, Numbers], needed: Mapping[Line2D, float]) -> list[float]:
    return spread_out([float(last[line][1]) for line in lines], [needed[line] for line in lines])


def _lead(axes: Axes, line: Line2D, end: tuple[float, float], y: float) -> None:
    """A thin line from the end of a curve to its name, with the curve's marker."""
    colour = line.get_color()
    style: Any = {"color": colour, "transform": axes.transAxes, "clip_on": False}
    axes.plot([end[0], 1.05], [end[1], y], linewidth=0.6, alpha=0.7, label="_", zorder=1, **style)
    if line.get_marker() not in ("", "None"):
        face = line.get_markerfacecolor()
        axes.plot([1.05], [y], marker=line.get_marker(), markersize=5, markerfacecolor=face, label="_", **style)


def spread_out(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Places near the wanted ones (shares of a panel) for texts of these heights, so that none covers another."""
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    places = list(wanted)
    floor = -np.inf
    for k in order:
        places[k] = max(wanted[k], floor + heights[k] / 2)
        floor = places[k] + heights[k] / 2
    ceiling = 1.02
    for k in reversed(order):
        places[k] = min(places[k], ceiling - heights[k] / 2)
        ceiling = places[k] - heights[k] / 2
    return places
