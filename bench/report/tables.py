"""Numbers as text (rounding, units, intervals) and tables of cells for people.

Numbers are rounded here and nowhere else, to three significant digits and, where an interval needs them to keep its
ends apart, more; summary.csv keeps full precision.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from bench.report.looks import curve_label, distinguishing_knobs, knobs_within_places

Row = Mapping[Any, Any]
Units = tuple[tuple[float, str], ...]
Columns = dict[str, Callable[[Row], str]]

BLANK = "—"
MORE_DIGITS = 3  # at most, to keep the ends of an interval apart
BYTES: Units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
SECONDS: Units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


NUMBER = re.compile(r"(< )?[-+]?[\d,.]+(e[+-]\d+)?( ?(GB|MB|kB|B|s|ms|µs|×|%))?( \(.*\))?( : .*)?")
NOTHING = {BLANK, "", "not checked"}
COMMON_FROM = 3  # rows
WIDE = 9  # columns; of a table with more, words are broken into lines
SETTING = {"where": "{}", "precision": "{}", "batch": "batch {}"}


class Table(NamedTuple):
    """A caption, the column heads, and the rows, all as text; what every row has in common; the better of two cells."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""
    best: frozenset[tuple[int, str]] = frozenset()  # number of a row, head of a column

    @property
    def is_wide(self) -> bool:
        """Whether it has more than WIDE columns."""
        return len(self.head) > WIDE

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds nothing but numbers (with unit or interval) and blanks."""
        columns = [[row[place] for row in self.rows] for place in range(len(self.head))]
        return [all(cell == BLANK or NUMBER.fullmatch(cell) for cell in column) for column in columns]


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
    """A table with a row per cell: the columns that identify it (`cell_names`), then `columns`.

    It has no row if it says nothing but that.
    """
    every = {**names, **columns}
    lines = [[column(row) for column in every.values()] for row in rows]
    said = [place for place, head in enumerate(every) if place >= len(names) and head != "n"]
    told = any(line[place] not in NOTHING for line in lines for place in said)
    return Table(caption, list(every), lines if told else [])


def compact(table: Table) -> Table:
    """The table without columns that are blank, and with those that are equal in every row as its note.

    If it is WIDE, the columns of SETTING become one.
    """
    columns = list(zip(*table.rows, strict=True)) if table.rows else []
    common = [place for place, column in enumerate(columns) if place and len(set(column)) == 1]
    blank = [place for place in common if columns[place][0] in (BLANK, "")]
    common = [place for place in common if place not in blank] if len(table.rows) >= COMMON_FROM else []
    note = ", ".join(f"{table.head[place]} {columns[place][0]}" for place in common)
    kept = [place for place in range(len(table.head)) if place not in {*common, *blank}]
    rows = [[row[place] for place in kept] for row in table.rows]
    made = table._replace(head=[table.head[place] for place in kept], rows=rows, note=note and f"In every row: {note}.")
    return joined(made) if made.is_wide else made


def joined(table: Table) -> Table:
    """The table with its columns of SETTING as one."""
    places = [table.head.index(head) for head in SETTING if head in table.head]
    if len(places) < 2:
        return table
    kept = [place for place in range(len(table.head)) if place not in places]
    at = sum(place < places[0] for place in kept)
    words = [", ".join(SETTING[table.head[place]].format(row[place]) for place in places) for row in table.rows]
    rows = [[row[place] for place in kept] for row in table.rows]
    head = [table.head[place] for place in kept]
    with_words = [[*row[:at], word, *row[at:]] for row, word in zip(rows, words, strict=True)]
    return table._replace(head=[*head[:at], "setting", *head[at:]], rows=with_words)


def cell_names(summary: pd.DataFrame) -> Columns:
    """The columns that identify a cell; its place is one of them only if places differ."""
    knobs = knobs_within_places(summary) if "place" in summary else distinguishing_knobs(summary)
    fields = ["strategy", "num_servers", "placement", *knobs]
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
