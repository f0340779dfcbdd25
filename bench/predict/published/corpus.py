"""Read published measurements: files of rows, each with what its source states and ranges for what it does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from bench.config import BadInput, first_problem, nearest, read_yaml, shorten
from bench.predict.published import step
from bench.predict.published.models import Model, built_in, find, parse
from bench.predict.published.ranges import Range, Value, at, named_ranges, read_range
from bench.predict.published.settings import Settings
from strategies.options import MAX_TEXT

FOLDER = Path(__file__).parent
Measure = Literal[
    "samples_per_s", "samples_per_s_per_gpu", "tokens_per_s_per_gpu", "efficiency", "step_s", "speed_ratio"
]
MEASURES: tuple[str, ...] = get_args(Measure)
MAX_ROWS, MAX_SHARE, MAX_VALUE = 1000, 2.0, 1e12
MIDDLES = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of an interval at which its settings are checked
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
        self._words = {key: self._word(self._fields.get(key, ""), key) for key in ("id", "source", "url", "note")}
        self._models = {**built_in(), **parse(self._fields.get("models", {}), where)}
        self._named = {**named_ranges(), **self._ranges(self._fields.get("ranges", {}), "ranges", {})}
        arms = self._table(self._fields.get("arms", {}), "arms")
        self._arms = {
            str(name): self._table(arm, f"arms: {name}", ("stated", "not_stated")) for name, arm in arms.items()
        }

    def measurements(self) -> list[Measurement]:
        if not isinstance(self._fields["rows"], list):
            raise BadInput(f"{self._where}: rows is not a list")
        if len(self._fields["rows"]) > MAX_ROWS:
            raise BadInput(f"{self._where}: {len(self._fields['rows'])} rows; at most {MAX_ROWS} are read")
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
        arm, name = self._arm(row.get("arm"), row, place), measured[0]
        if name.startswith("tokens") and "tokens" not in {**arm.stated, **arm.ranges}:
            raise BadInput(f"{self._where}: {place}: {name} needs `tokens`, the tokens of a sample")
        compare = self._word(row["compare"], f"{place}: compare") if "compare" in row else None
        return Measurement(
            study=self._words["id"], source=self._words["source"], url=self._words["url"], arm=arm,
            measure=name, value=self._positive(row[name], f"{place}: {name}", _most(name)),  # type: ignore[arg-type]
            rounding=self._rounding(row, place) or self._digits(row, name),
            over=self._arm(row["over"], row, place) if "over" in row else None, compare=compare,
            note=self._word(row.get("note", self._words["note"]), f"{place}: note"), models=self._models,
        )  # fmt: skip

    def _rounding(self, row: Mapping[str, Any], place: str) -> float:
        """Return what the row or the file says of the rounding of its numbers, 0 if nothing."""
        found = row.get("rounding", self._fields.get("rounding", 0))
        return 0.0 if found == 0 else self._positive(found, f"{place}: rounding", 0.5)

    def _digits(self, row: Mapping[str, Any], measured: str) -> float:
        """Return what the digits of the measurement and of the single worker's rate leave open: half of the last."""
        arm = self._arms.get(str(row.get("arm")), {})
        levels = (row, row.get("stated", {}), arm.get("stated", {}), self._fields.get("stated", {}))
        alone = next((level["single_gpu"] for level in levels if "single_gpu" in level), None)
        return sum(half_digit(value) for value in (row[measured], alone) if value is not None)

    def _arm(self, name: Any, row: Mapping[str, Any], place: str) -> Arm:
        """Join the settings of the file, of the arm and of the row; the later ones have precedence."""
        name = None if name is None else self._word(name, f"{place}: arm")
        if name is not None and name not in self._arms:
            raise BadInput(f"{self._where}: {place}: there is no arm {name!r}{nearest(name, self._arms)}")
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
        """Raise BadInput unless the settings are complete and possible wherever in its range each of them lies."""
        middle = {key: at(found, 0.5) for key, found in arm.ranges.items()}
        for key, found in (*arm.ranges.items(), (None, None)):
            for value in found.any_of or [at(found, share) for share in MIDDLES] if found else [None]:
                changed = middle if key is None else {**middle, key: value}
                self._check_settings({**arm.stated, **changed}, place)

    def _check_settings(self, values: Mapping[str, Any], place: str) -> None:
        try:
            settings = Settings.model_validate(values)
            settings.step_compute_s(find(settings.model, dict(self._models)))
            _ = settings.link_bytes_per_s, settings.servers
            step.check(settings)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            missing = f"{first['loc'][0]} is missing; state it, or give a range for it" if first["loc"] else ""
            problem = missing if first["type"] == "missing" else first_problem(error, Settings.model_fields)
            raise BadInput(f"{self._where}: {place}: {problem}") from None
        except BadInput as error:
            raise BadInput(f"{self._where}: {place}: {error}") from None

    def _ranges(self, given: Any, place: str, named: Mapping[str, Range]) -> dict[str, Range]:
        table = self._table(given, place)
        return {str(key): read_range(value, f"{self._where}: {place}: {key}", named) for key, value in table.items()}

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

    def _positive(self, value: Any, place: str, most: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            raise BadInput(f"{self._where}: {place}: {shorten(value)} is not a number above 0, at most {most:g}")
        return float(value)

    def _word(self, value: Any, place: str) -> str:
        text = str(value)
        if isinstance(value, bool | list | dict | None) or len(text) > MAX_TEXT or not text.isprintable():
            raise BadInput(f"{self._where}: {place}: {shorten(value)} is no line of text")
        return text


def _most(measure: str) -> float:
    """Return the largest value of a measure: an efficiency of 90 is one in per cent."""
    return MAX_SHARE if measure == "efficiency" else MAX_VALUE
