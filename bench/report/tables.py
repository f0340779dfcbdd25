"""Numbers as text (rounding, units, intervals) and tables of cells for people.

Numbers are rounded here and nowhere else, to three significant digits and, where an interval needs them to keep its
ends apart, more; summary.csv keeps full precision.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from bench.report.looks import curve_label, distinguishing_knobs

Row = Mapping[Any, Any]
Units = tuple[tuple[float, str], ...]
Columns = dict[str, Callable[[Row], str]]

BLANK = "—"
MORE_DIGITS = 3  # at most, to keep the ends of an interval apart
BYTES: Units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
SECONDS: Units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


class Table(NamedTuple):
    """A caption, the column heads, and the rows, all as text."""

    caption: str
    head: list[str]
    rows: list[list[str]]


def number(value: Any) -> str:
    """Three significant digits (12,300; 12.3; 0.00123); a dash for a blank."""
    if pd.isna(value):
        return BLANK
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.2e}"
    return _rounded(value, _decimals(value))


def _decimals(value: float) -> int:
    """The decimals of three significant digits; negative left of the point."""
    return 2 - int(f"{value:.2e}".split("e")[1])


def _rounded(value: float, decimals: int) -> str:
    return f"{round(value, decimals):,.{max(0, decimals)}f}"


def scaled(value: Any, units: Units) -> str:
    """A number in the largest unit that leaves it at least 1."""
    if pd.isna(value):
        return BLANK
    size, unit = next((pair for pair in units if abs(value) >= 0.9995 * pair[0]), units[-1])
    return f"{number(value / size)} {unit}" if value else "0"


def interval(row: Row, name: str) -> str:
    """12.3 (11.9–12.8); without the bracket where there is no interval.

    All three have as many decimals as keep them apart, at least those of three significant digits of the value.
    """
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if pd.isna(low) or not 1e-4 <= abs(value) < 1e9:
        return number(value) + ("" if pd.isna(low) else f" ({number(low)}–{number(high)})")
    first = _decimals(value)
    for decimals in range(first, first + MORE_DIGITS + 1):
        texts = [_rounded(each, decimals) for each in (value, low, high)]
        if len(set(texts)) == len({value, low, high}):
            break
    return f"{texts[0]} ({texts[1]}–{texts[2]})"


def table(rows: Iterable[Row], caption: str, columns: Columns, names: Columns) -> Table:
    """A table with a row per cell: the columns that identify it (`cell_names`), then `columns`."""
    every = {**names, **columns}
    return Table(caption, list(every), [[column(row) for column in every.values()] for row in rows])


def cell_names(summary: pd.DataFrame) -> Columns:
    """The columns that identify a cell; its place is one of them only if places differ."""
    fields = ["strategy", "num_servers", "placement", *distinguishing_knobs(summary)]
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
    """Columns of numbers without a unit: head = field; an underscore in a head is a space."""
    return {head.replace("_", " "): partial(number_of, field) for head, field in names.items()}


def in_units(units: Units, **names: str) -> Columns:
    """Columns of numbers with a unit: head = field; an underscore in a head is a space."""
    return {head.replace("_", " "): partial(size_of, field, units) for head, field in names.items()}


def number_of(field: str, row: Row) -> str:
    """A field of a row, as `number` writes it."""
    return number(row[field])


def size_of(field: str, units: Units, row: Row) -> str:
    """A field of a row, as `scaled` writes it."""
    return scaled(row[field], units)
