"""How numbers become text: rounding, units, intervals, and tables of cells for people.

Numbers are rounded to three significant digits here and nowhere else; summary.csv keeps them whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from bench.report.looks import curve_label, told_apart

Row = Mapping[Any, Any]
Units = tuple[tuple[float, str], ...]
Columns = dict[str, Callable[[Row], str]]

BLANK = "—"
BYTES: Units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
SECONDS: Units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


class Table(NamedTuple):
    """A caption, the column heads, and rows of text."""

    caption: str
    head: list[str]
    rows: list[list[str]]


def number(value: Any) -> str:
    """Three significant digits (12,300; 12.3; 0.00123), a dash for a blank."""
    if pd.isna(value):
        return BLANK
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.2e}"
    exponent = int(f"{value:.2e}".split("e")[1])
    return f"{round(value, 2 - exponent):,.{max(0, 2 - exponent)}f}"


def scaled(value: Any, units: Units) -> str:
    """A number in the largest unit of which it is at least one."""
    if pd.isna(value):
        return BLANK
    size, unit = next((pair for pair in units if abs(value) >= 0.9995 * pair[0]), units[-1])
    return f"{number(value / size)} {unit}" if value else "0"


def interval(row: Row, name: str) -> str:
    """12.3 (11.9–12.8), without the bracket where no interval is known."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return number(row[name]) + ("" if pd.isna(low) else f" ({number(low)}–{number(high)})")


def table(cells: Iterable[Row], caption: str, columns: Columns, names: Columns) -> Table:
    """A table of cells: what names a cell (`cell_names`), then the given columns. A failed cell keeps its row."""
    every = {**names, **columns}
    return Table(caption, list(every), [[column(row) for column in every.values()] for row in cells])


def cell_names(summary: pd.DataFrame) -> Columns:
    """The columns that tell a reader which cell a row is; where it ran only if that differs."""
    fields = ["strategy", "num_servers", "placement", *told_apart(summary)]
    places = set(summary["place"]) - {""} if "place" in summary else set()
    where: Columns = {"where": lambda row: str(row["place"]) or BLANK} if len(places) > 1 else {}

    @functools.cache
    def label(*values: Any) -> str:
        return curve_label(dict(zip(fields, values, strict=True)))

    return {
        "strategy": lambda row: label(*(row[field] for field in fields)),
        **where,
        "workers": lambda row: str(row["num_workers"]),
        "precision": lambda row: str(row["precision"]),
        "batch": lambda row: str(row["batch_size"]),
    }


def plain(**names: str) -> Columns:
    """Columns of numbers as they are: head = field."""
    return {head.replace("_", " "): partial(_number_of, field) for head, field in names.items()}


def in_units(units: Units, **names: str) -> Columns:
    """Columns of numbers with a unit: head = field."""
    return {head.replace("_", " "): partial(_size_of, field, units) for head, field in names.items()}


def _number_of(field: str, row: Row) -> str:
    return number(row[field])


def _size_of(field: str, units: Units, row: Row) -> str:
    return scaled(row[field], units)
