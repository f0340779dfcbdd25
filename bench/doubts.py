"""Which records of a results folder cannot be what psring wrote: a folder may be edited, damaged or a stranger's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bench.config import BadInput

if TYPE_CHECKING:
    from bench.records import RunRecord

NEVER_NEGATIVE = ("_s", "_per_s", "_share", "_bytes", "_p95")  # ends of the names of times, rates, shares and sizes


def doubt(record: RunRecord) -> str:
    """Return why a record cannot be true; blank if it can."""
    name, _, _ = record.run_id.partition("-a")  # without the number of the attempt
    if name != f"{record.cell}-r{record.repeat}":
        return f"its cell is {record.cell} and its repeat {record.repeat}"
    numbers = {"wall_s": record.wall_s, "steps_s": record.steps_s}
    if record.summary:
        numbers |= record.summary.model_dump()
    for name, value in numbers.items():
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name} is {value}"
        if isinstance(value, int | float) and value < 0 and name.endswith(NEVER_NEGATIVE):
            return f"{name} is {value}, which is negative"
    return ""


def check_cells(path: Path, records: Iterable[RunRecord]) -> None:
    """Raise BadInput if runs of one cell have other configs: a cell is named after its config.

    Names of an earlier version, which had other knobs, cannot be computed again; there, equal names need equal configs.
    """
    first: dict[str, RunRecord] = {}
    for record in records:
        known = first.setdefault(record.cell, record)
        if record.config.digest() != known.config.digest():
            raise BadInput(f"{path}: {known.run_id} and {record.run_id} have other configs, and one cell; remove one")
    others = [record for record in first.values() if record.config.digest() != record.cell]
    if others and len(others) < len(first):
        raise BadInput(f"{path}: {others[0].run_id}: its cell is the name of another config; remove the line")
