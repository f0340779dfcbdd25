"""Predict published measurements with a band, and judge: rows whose band holds the measurement, and winners."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.config import BadInput
from bench.predict.published.corpus import Arm, Measure, Measurement
from bench.predict.published.models import find
from bench.predict.published.ranges import Range, Value, ends, number
from bench.predict.published.sampling import SAMPLES, draw, middle
from bench.predict.published.settings import Settings
from bench.predict.published.step import Step, step

BAND = (0.05, 0.95)  # a 90 % band
MARGIN = 0.02  # speeds that differ by less are equivalent, as in a report
BEYOND = 16.0  # how far outside its range a setting is looked for that would explain a miss
POINTS = 33


@dataclass(frozen=True)
class Prediction:
    """A row beside its prediction. Values have the unit of the row's measure."""

    row: Measurement
    low: float
    middle: float
    high: float
    speeds: tuple[float, ...]  # steps per second times samples, of each sample
    bounded_by: str  # what most samples' step is bounded by
    needs: str  # of a miss: the setting, outside its range, that would explain it

    @property
    def holds(self) -> bool:
        """Whether the band holds the measurement, within the rounding of its digits."""
        value, rounding = self.row.value, self.row.rounding
        return self.low * (1 - rounding) <= value <= self.high * (1 + rounding)

    @property
    def ratio(self) -> float:
        """Predicted over measured, as speeds: above 1 the prediction is faster than the measurement."""
        ratio = self.middle / self.row.value
        return 1 / ratio if self.row.measure == "step_s" else ratio

    @property
    def width(self) -> float:
        """Upper over lower end of the band."""
        return self.high / self.low


@dataclass(frozen=True)
class Pair:
    """Two arms that a source compares: measured and predicted ratio of speeds, first over second."""

    study: str
    first: str
    second: str
    measured: float
    predicted: float
    topologies: bool  # whether one has servers and the other has not

    @property
    def verdict(self) -> str:
        """right, wrong or undecided (predicted within the margin); equivalent if they were measured as equal."""
        if abs(self.measured - 1) <= MARGIN:
            return "equivalent"
        if abs(self.predicted - 1) <= MARGIN:
            return "undecided"
        return "right" if (self.measured > 1) == (self.predicted > 1) else "wrong"


def predict(row: Measurement, samples: int = SAMPLES) -> Prediction:
    """Predict a row from its settings alone."""
    steps = [_step(row, each) for each in draw(row.arm, samples)]
    below = [_step(row, each) for each in draw(row.over, samples)] if row.over else []
    values = sorted(_values(row.measure, steps, below))
    low, mid, high = (_quantile(values, share) for share in (BAND[0], 0.5, BAND[1]))
    bounds = [each.bounded_by for each in steps]
    found = Prediction(
        row, low, mid, high, tuple(each.samples_per_s for each in steps), max(sorted(set(bounds)), key=bounds.count), ""
    )
    return found if found.holds else Prediction(**{**vars(found), "needs": _needs(row)})


def _step(row: Measurement, settings: Settings) -> Step:
    return step(settings, find(settings.model, dict(row.models)))


def _values(measure: Measure, steps: Sequence[Step], below: Sequence[Step]) -> list[float]:
    if measure == "speed_ratio":
        return [one.samples_per_s / other.samples_per_s for one, other in zip(steps, below, strict=True)]
    return [each.measure(measure) for each in steps]


def _quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values, between its neighbours."""
    place = share * (len(values) - 1)
    index = min(int(place), len(values) - 2) if len(values) > 1 else 0
    return values[index] + (place - index) * (values[min(index + 1, len(values) - 1)] - values[index])


def _needs(row: Measurement) -> str:
    """Return which one setting, outside its range and all others in the middle of theirs, gives the measurement.

    Of several the one that is least far outside; '' if there is none.
    """
    found = []
    for arm in (row.arm, *([row.over] if row.over else [])):
        for key, each in arm.ranges.items():
            value = _explains(row, arm, key, each) if each.any_of is None else None
            if value is not None:
                low, high = (number(end) for end in ends(each))
                found.append((max(low / value, value / high), f"{key} {_shown(value, each)} instead of {each}"))
    return min(found)[1] if found else ""


def _explains(row: Measurement, arm: Arm, key: str, found: Range) -> float | None:
    """Return the value of a setting, nearest to its range, with which the row would be predicted as measured."""
    low, high = (number(end) for end in ends(found))
    text = isinstance(found.from_, str)
    grid = [low / BEYOND * (high / low * BEYOND**2) ** (i / (POINTS - 1)) for i in range(POINTS)]
    errors = []
    for value in grid:
        replaced: dict[str, Value] = {key: f"{round(value / 1e3)}kbit" if text else value}
        try:
            errors.append(_middle_value(row, arm, replaced) / row.value - 1)
        except (ValueError, BadInput):  # a share above 1, or a rate that no link has
            errors.append(math.nan)
    crossings = [math.sqrt(grid[i] * grid[i + 1]) for i in range(POINTS - 1) if errors[i] * errors[i + 1] <= 0]
    outside = [value for value in crossings if not low <= value <= high]
    return min(outside, key=lambda value: max(low / value, value / high), default=None)


def _middle_value(row: Measurement, arm: Arm, replaced: dict[str, Value]) -> float:
    """Return a row's value with all ranges at their middle, and settings of one arm replaced."""
    one = _step(row, middle(row.arm, **(replaced if arm is row.arm else {})))
    other = [_step(row, middle(row.over, **(replaced if arm is row.over else {})))] if row.over else []
    return _values(row.measure, [one], other)[0]


def _shown(value: float, found: Range) -> str:
    return f"{value / 1e9:.3g}gbit" if isinstance(found.from_, str) else f"{value:.3g}"


def pairs(predictions: Sequence[Prediction]) -> list[Pair]:
    """Return every two arms that a source compares."""
    found = [
        Pair(each.row.study, each.row.arm.name, each.row.over.name, each.row.value, each.middle,
             _topologies(each.row.arm, each.row.over))
        for each in predictions if each.row.over
    ]  # fmt: skip
    groups: dict[tuple[str, str], list[Prediction]] = {}
    for each in predictions:
        if each.row.compare:
            groups.setdefault((each.row.study, each.row.compare), []).append(each)
    for group in groups.values():
        for one, other in itertools.combinations(group, 2):
            predicted = median(a / b for a, b in zip(one.speeds, other.speeds, strict=True))
            measured = one.row.value / other.row.value
            if one.row.measure == "step_s":
                measured = 1 / measured
            found.append(Pair(one.row.study, one.row.label, other.row.label, measured, predicted,
                              _topologies(one.row.arm, other.row.arm)))  # fmt: skip
    return found


def _topologies(one: Arm, other: Arm) -> bool:
    return one.stated.get("strategy") != other.stated.get("strategy")
