"""Read the file of `psring predict --out`: numbers written before the runs, checked before they are scored."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.config import BadInput, shorten
from bench.files import read_text

RATES = ("tokens_per_s_low", "tokens_per_s", "tokens_per_s_high")
SAME = ("strategy", "num_workers", "num_servers")  # of a row and of the measured cell whose name it has
# summary.csv has the columns of what was predicted, too, but not the last one: measurements are no predictions.
COLUMNS = ("cell", *SAME, *RATES, "extrapolated")
NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?(e[-+]?[0-9]+)?")
MAX_RATE = 1e15


@dataclass(frozen=True)
class Predicted:
    """One row: tokens per second with the 90 % band, and what says which cell it is."""

    low: float
    middle: float
    high: float
    same: Mapping[str, str]


def read(path: Path) -> dict[str, Predicted]:
    """Return the rows with numbers by the name of their cell; BadInput names the line that cannot be a prediction."""
    try:
        lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        header = next(lines, [])
        missing = [name for name in COLUMNS if header.count(name) != 1]
        if missing:
            raise ValueError(f"the column {missing[0]} is there {header.count(missing[0])} times")
        rows = [_row(dict(zip(header, line, strict=True)), lines.line_num) for line in lines if line]
    except (ValueError, csv.Error) as error:
        raise BadInput(f"--predictions: {path}: {error}; give the file of psring predict --out") from None
    found = dict(row for row in rows if row is not None)
    if len(found) < sum(row is not None for row in rows):
        raise BadInput(f"--predictions: {path}: a cell is there twice; give the file of psring predict --out")
    return found


def _row(row: Mapping[str, str], line: int) -> tuple[str, Predicted] | None:
    """Return a row's cell and numbers; None for one without numbers, which has a reason instead."""
    texts = [row[name] for name in RATES]
    if not any(texts):
        return None
    for name, text in zip(RATES, texts, strict=True):
        if not NUMBER.fullmatch(text) or not 0 < float(text) <= MAX_RATE:
            raise ValueError(f"line {line}: {name}: {shorten(text)} is no throughput")
    low, middle, high = map(float, texts)
    if not low <= middle <= high:
        raise ValueError(f"line {line}: {middle:g} is not within its band, {low:g} to {high:g}")
    return row["cell"], Predicted(low, middle, high, {name: row[name] for name in SAME})
