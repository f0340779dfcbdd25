"""Read published measurements: files of rows, each with what its source states and ranges for what it does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from bench.config import BadInput, first_problem, nearest, read_yaml, shorten
from bench.links import parse_rate
from bench.predict.published.models import Model, built_in, find, parse
from bench.predict.published.settings import Settings
from strategies.options import Given

FOLDER = Path(__file__).parent
Measure = Literal[
    "samples_per_s", "samples_per_s_per_gpu", "tokens_per_s_per_gpu", "efficiency", "step_s", "speed_ratio"
]
MEASURES: tuple[str, ...] = get_args(Measure)
Value = str | float | int | bool
STUDY_KEYS = (
    "id",
    "about",
    "source",
    "url",
    "stated",
    "not_stated",
    "arms",
    "rounding",
    "rows",
    "models",
    "ranges",
    "note",
)
ROW_KEYS = ("arm", "over", "stated", "not_stated", "rounding", "compare", "note")


class Range(Given):
    """What is assumed for a setting that a source does not state: an interval or a choice, and the reason."""

    from_: Annotated[Value | None, Field(alias="from")] = None
    to: Value | None = None
    any_of: list[Value] | None = None
    because: str
    name: str = ""

    @model_validator(mode="after")
    def _one_kind(self) -> Range:
        if (self.any_of is None) == (self.from_ is None) or (self.from_ is None) != (self.to is None):
            raise ValueError("a range is {from, to, because} or {any_of, because}")
        if self.any_of == []:
            raise ValueError("any_of is empty; list what is possible")
        if self.from_ is not None and self.to is not None and not 0 < number(self.from_) <= number(self.to):
            raise ValueError(f"a range from {self.from_} to {self.to} is empty, or not positive")
        return self

    def __str__(self) -> str:
        return " or ".join(map(str, self.any_of)) if self.any_of else f"{_plain(self.from_)} to {_plain(self.to)}"


def _plain(value: Value | None) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


@dataclass(frozen=True)
class Arm:
    """What was run: the settings that the source states, and ranges for those that it does not."""

    name: str
    stated: Mapping[str, Value]
    ranges: Mapping[str, Range]


@dataclass(frozen=True)
class Measurement:
    """One published number."""

    study: str
    source: str
    url: str
    arm: Arm
    measure: Measure
    value: float
    rounding: float  # relative: what the source's digits leave open
    over: Arm | None  # of a speed_ratio: the arm below the line
    compare: str | None  # rows of a study with the same word are ranked against each other
    note: str
    models: Mapping[str, Model]

    @property
    def label(self) -> str:
        """A short name of the row: its arm, model and number of workers, as far as they are stated."""
        parts = [self.arm.name, str(self.arm.stated.get("model", "")), self._workers()]
        return ", ".join(part for part in parts if part) + (f" over {self.over.name}" if self.over else "")

    @property
    def link_is_known(self) -> bool:
        """Whether the link is stated, or bounded by the class of the machines."""
        known = self.arm.ranges.get("link")
        return "link" in self.arm.stated or (known is not None and known.any_of is None)

    def _workers(self) -> str:
        count = self.arm.stated.get("num_gpus")
        return "" if count is None else f"{count} worker" + "s" * (count != 1)


def half_digit(value: float) -> float:
    """Return half of a number's last digit, relative to the number: 0.025 of 20, 0.0025 of 20.0."""
    decimals = len(repr(value).partition(".")[2]) if isinstance(value, float) else 0
    return 0.5 * 10.0**-decimals / value


def number(value: Value) -> float:
    """Return a value as a number: 0.5, or the bits per second of 25gbit."""
    return float(parse_rate(value)) if isinstance(value, str) else float(value)


def read_corpus() -> list[Measurement]:
    """Return the measurements that come with psring."""
    return [row for file in sorted((FOLDER / "corpus").glob("*.yaml")) for row in read_rows(file)]


def read_rows(path: Path) -> list[Measurement]:
    """Return the measurements of a file; BadInput, naming the place, if it is not of the documented form."""
    try:
        content = read_yaml(path)
    except OSError as error:
        raise BadInput(f"rows: {path} cannot be read: {error.strerror}") from None
    return _Study(content, path.name).measurements()


class _Study:
    """A file of measurements from one source."""

    def __init__(self, content: Any, where: str) -> None:
        self._where = where
        self._fields = self._table(content, "the file", STUDY_KEYS)
        for key in ("id", "source", "rows"):
            if not self._fields.get(key):
                raise BadInput(f"{where}: {key} is missing")
        self._models = {**built_in(), **parse(self._fields.get("models", {}), where)}
        self._named = {**_named_ranges(), **self._ranges(self._fields.get("ranges", {}), "ranges", {})}
        arms = self._table(self._fields.get("arms", {}), "arms")
        self._arms = {
            str(name): self._table(arm, f"arms: {name}", ("stated", "not_stated")) for name, arm in arms.items()
        }

    def measurements(self) -> list[Measurement]:
        if not isinstance(self._fields["rows"], list):
            raise BadInput(f"{self._where}: rows is not a list")
        return [self._measurement(row, f"row {index}") for index, row in enumerate(self._fields["rows"], 1)]

    def _measurement(self, given: Any, place: str) -> Measurement:
        row = self._table(given, place, (*ROW_KEYS, *MEASURES, *Settings.model_fields))
        measured = [name for name in MEASURES if name in row]
        if len(measured) != 1:
            raise BadInput(f"{self._where}: {place}: one of {', '.join(MEASURES)} is needed, not {len(measured)}")
        if (measured[0] == "speed_ratio") != ("over" in row):
            raise BadInput(
                f"{self._where}: {place}: a speed_ratio, and nothing else, needs `over`, the arm below the line"
            )
        return Measurement(
            study=str(self._fields["id"]), source=str(self._fields["source"]), url=str(self._fields.get("url", "")),
            arm=self._arm(row.get("arm"), row, place), measure=measured[0],  # type: ignore[arg-type]
            value=self._positive(row[measured[0]], f"{place}: {measured[0]}"),
            rounding=float(row.get("rounding", self._fields.get("rounding", 0.0))) or self._digits(row, measured[0]),
            over=self._arm(row["over"], row, place) if "over" in row else None,
            compare=row.get("compare"), note=str(row.get("note", self._fields.get("note", ""))), models=self._models,
        )  # fmt: skip

    def _digits(self, row: Mapping[str, Any], measured: str) -> float:
        """Return what the digits of the measurement and of the single worker's rate leave open: half of the last."""
        arm = self._arms.get(str(row.get("arm")), {})
        levels = (row, row.get("stated", {}), arm.get("stated", {}), self._fields.get("stated", {}))
        alone = next((level["single_gpu"] for level in levels if "single_gpu" in level), None)
        return sum(half_digit(value) for value in (row[measured], alone) if value is not None)

    def _arm(self, name: Any, row: Mapping[str, Any], place: str) -> Arm:
        """Join the settings of the file, of the arm and of the row; the later ones have precedence."""
        if name is not None and name not in self._arms:
            raise BadInput(f"{self._where}: {place}: there is no arm {name!r}{nearest(str(name), self._arms)}")
        stated: dict[str, Value] = {}
        ranges: dict[str, Range] = {}
        inline = {key: value for key, value in row.items() if key in Settings.model_fields}
        levels = [self._fields, self._arms.get(name, {}), row, {"stated": inline}]
        for level in levels:
            for key, value in self._table(level.get("stated", {}), f"{place}: stated", Settings.model_fields).items():
                stated[key] = value
                ranges.pop(key, None)
            given = self._ranges(level.get("not_stated", {}), f"{place}: not_stated", self._named)
            for key, found in given.items():
                ranges[self._known(key, Settings.model_fields, place)] = found
                stated.pop(key, None)
        arm = Arm(str(name or ""), stated, ranges)
        self._check(arm, place)
        return arm

    def _check(self, arm: Arm, place: str) -> None:
        """Raise BadInput unless the settings are complete at both ends of every range."""
        for end in (0, -1):
            values = {**arm.stated, **{key: ends(found)[end] for key, found in arm.ranges.items()}}
            try:
                settings = Settings.model_validate(values)
                settings.step_compute_s(find(settings.model, dict(self._models)))
                _ = settings.link_bytes_per_s, settings.servers
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                missing = f"{first['loc'][0]} is missing; state it, or give a range for it" if first["loc"] else ""
                problem = missing if first["type"] == "missing" else first_problem(error, Settings.model_fields)
                raise BadInput(f"{self._where}: {place}: {problem}") from None
            except BadInput as error:
                raise BadInput(f"{self._where}: {place}: {error}") from None

    def _ranges(self, given: Any, place: str, named: Mapping[str, Range]) -> dict[str, Range]:
        table = self._table(given, place)
        return {str(key): _range(value, f"{self._where}: {place}: {key}", named) for key, value in table.items()}

    def _table(self, given: Any, place: str, known: Any = None) -> dict[str, Any]:
        if not isinstance(given, dict):
            raise BadInput(f"{self._where}: {place} is not a table of key: value")
        for key in given if known is not None else ():
            self._known(key, known, place)
        return given

    def _known(self, key: Any, known: Any, place: str) -> str:
        if key not in known:
            raise BadInput(f"{self._where}: {place}: unknown key {shorten(key)}{nearest(str(key), known)}")
        return str(key)

    def _positive(self, value: Any, place: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e15:
            raise BadInput(f"{self._where}: {place}: {shorten(value)} is not a number above 0")
        return float(value)


def _named_ranges() -> dict[str, Range]:
    table = read_yaml(FOLDER / "ranges.yaml")
    return {name: _range(value, f"ranges.yaml: {name}", {}, name) for name, value in table.items()}


def _range(given: Any, where: str, named: Mapping[str, Range], name: str = "") -> Range:
    """Return a range given by its name or in place; BadInput if it is neither."""
    if isinstance(given, str):
        if given not in named:
            raise BadInput(f"{where}: there is no range {given!r}{nearest(given, named)}; write {{from, to, because}}")
        return named[given]
    try:
        return Range.model_validate({**given, "name": name or where})
    except (ValidationError, TypeError) as error:
        problem = (
            first_problem(error, ("from", "to", "any_of", "because")) if isinstance(error, ValidationError) else ""
        )
        raise BadInput(f"{where}: {problem or 'a range is {from, to, because} or {any_of, because}'}") from None


def ends(found: Range) -> tuple[Value, Value]:
    """Return the first and the last value of a range."""
    if found.any_of:
        return found.any_of[0], found.any_of[-1]
    assert found.from_ is not None
    assert found.to is not None
    return found.from_, found.to
