"""Draws the figures of records, and reads what is in them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench import records
from bench.records import RunRecord
from bench.report import cells, duels, figures, labels, looks, loss, overview


def summarize(*runs: RunRecord) -> pd.DataFrame:
    return cells.summarize(records.frame(runs))


def draw(*runs: RunRecord, folder: Path = Path("nowhere")) -> dict[str, Figure]:
    table = records.frame(runs)
    lines = loss.read(folder, table)
    summary = loss.add_costs(cells.summarize(table), table, lines)
    return figures.make_figures(summary, duels.duels(table), lines)


def draw_overview(*runs: RunRecord) -> list[Axes]:
    """The panels of the first figure alone."""
    table = records.frame(runs)
    return overview.overview(looks.with_looks(figures.to_draw(cells.summarize(table))), duels.duels(table), 0.02).axes


def curves_of(axes: Axes) -> dict[str, Line2D]:
    """The named curves of a panel."""
    return {str(line.get_label()): line for line in labels.named_lines(axes)}


def words(axes: Axes) -> str:
    """All that is written in a panel, in one line."""
    return " ".join(" ".join(text.get_text() for text in axes.texts).split())
