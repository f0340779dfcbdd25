"""Ranges for settings that a source does not state: an interval or a choice, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from bench.config import BadInput, first_problem, nearest, read_yaml, shorten
from bench.links import parse_rate
from strategies.options import Given

FILE = Path(__file__).parent / "ranges.yaml"
FORM = "a range is {from, to, because} or {any_of, because}"
MAX_CHOICES = 64
Value = str | float | int | bool


class Range(Given):
    """What is assumed for a setting that a source does not state: an interval or a choice, and the reason."""

    from_: Annotated[Value | None, Field(alias="from")] = None
    to: Value | None = None
    any_of: Annotated[list[Value], Field(min_length=1, max_length=MAX_CHOICES)] | None = None
    because: str
    name: str = ""

    @model_validator(mode="after")
    def _one_kind(self) -> Range:
        if (self.any_of is None) == (self.from_ is None) or (self.from_ is None) != (self.to is None):
            raise ValueError(FORM)
        if self.from_ is not None and self.to is not None:
            _check_interval(self.from_, self.to)
        return self

    def __str__(self) -> str:
        return " or ".join(map(str, self.any_of)) if self.any_of else f"{_plain(self.from_)} to {_plain(self.to)}"


def _check_interval(low: Value, high: Value) -> None:
    """Raise ValueError unless an interval has two ends of one kind, the lower first and above 0."""
    if isinstance(low, str) != isinstance(high, str) or bool in (type(low), type(high)):
        raise ValueError(
            f"a range from {low} to {high} has ends of two kinds; write two numbers, or two rates (25gbit)"
        )
    try:
        if 0 < number(low) <= number(high):
            return
    except BadInput as error:
        raise ValueError(str(error)) from None
    raise ValueError(f"a range from {low} to {high} is empty, or not positive")


def _plain(value: Value | None) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def number(value: Value) -> float:
    """Return a value as a number: 0.5, or the bits per second of 25gbit."""
    return float(parse_rate(value)) if isinstance(value, str) else float(value)


def named_ranges() -> dict[str, Range]:
    """Return the ranges of ranges.yaml."""
    table = read_yaml(FILE)
    return {name: read_range(value, f"ranges.yaml: {name}", {}, name) for name, value in table.items()}


def read_range(given: Any, where: str, named: Mapping[str, Range], name: str = "") -> Range:
    """Return a range given by its name or in place; BadInput if it is neither."""
    if isinstance(given, str):
        if given not in named:
            raise BadInput(
                f"{where}: there is no range {shorten(given)}{nearest(given, named)}; write {{from, to, because}}"
            )
        return named[given]
    try:
        return Range.model_validate({**given, "name": name or where})
    except TypeError:
        raise BadInput(f"{where}: {FORM}") from None
    except ValidationError as error:
        raise BadInput(f"{where}: {first_problem(error, ('from', 'to', 'any_of', 'because'))}") from None


def ends(found: Range) -> tuple[Value, Value]:
    """Return the first and the last value of a range."""
    if found.any_of:
        return found.any_of[0], found.any_of[-1]
    assert found.from_ is not None
    assert found.to is not None
    return found.from_, found.to


def at(found: Range, share: float) -> Value:
    """Return the value that a share (0 to 1) of a range lies below: log-uniform in an interval."""
    if found.any_of:
        return found.any_of[min(int(share * len(found.any_of)), len(found.any_of) - 1)]
    low, high = ends(found)
    value = number(low) * (number(high) / number(low)) ** share
    return f"{round(value / 1e3)}kbit" if isinstance(low, str) else value
