"""Where the curves of two strategies cross, measured and predicted: over nodes, or over the rate of the links.

A curve is the throughput of cells that differ only in the axis. Between two neighbouring points the logarithm of the
ratio of two curves is taken as straight over the logarithm of the axis. A change of order counts only if one strategy
is ahead by more than the margin on one side and behind by more than it on the other.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from bench.config import BadInput, RunConfig
from bench.links import parse_rate
from bench.predict.measured import Measured

MARGIN = 0.02  # measured differences below it are no verdict (docs/method.md)
WORK = ("model", "n_layer", "n_embd", "block_size", "vocab_size", "batch_size", "gradient_accumulation", "precision",
        "compute", "speed_factor", "compute_cv")  # fmt: skip
NODES, LINK = "nodes", "Mbit/s"
OF_AXIS = {NODES: {"num_workers", "slowdown"}, LINK: {"link", "slowdown"}}  # knobs that differ along a curve


class Rated(NamedTuple):
    """A measured cell and its predicted tokens per second."""

    one: Measured
    predicted: float


@dataclass(frozen=True)
class Crossing:
    """Where two strategies change places on an axis, as measured and as predicted; None: not in the measured range."""

    axis: str  # NODES or LINK
    strategies: tuple[str, str]
    between: tuple[float, float]  # the ends of the measured range
    measured: float | None
    predicted: float | None

    @property
    def error(self) -> float | None:
        """Predicted over measured, less 1; None if one of them is not in the range."""
        return None if self.measured is None or self.predicted is None else self.predicted / self.measured - 1


def same_work(a: RunConfig, b: RunConfig) -> bool:
    """Whether two cells do equal work per worker."""
    return all(getattr(a, name) == getattr(b, name) for name in WORK)


def crossings(points: Sequence[Rated]) -> list[Crossing]:
    """Return every crossing that was measured or predicted between curves of at least two common points."""
    return [crossing for axis in OF_AXIS for crossing in _on_axis(points, axis)]


def _on_axis(points: Sequence[Rated], axis: str) -> Iterator[Crossing]:
    curves: dict[str, dict[float, Rated]] = defaultdict(dict)
    for point in points:
        place = _place(point.one, axis)
        if place is not None:
            curves[repr(point.one.config.model_dump(exclude=OF_AXIS[axis]))][place] = point
    for first, second in combinations(curves.values(), 2):
        places = sorted(first.keys() & second.keys())
        if len(places) > 1 and _rivals(first[places[0]].one, second[places[0]].one, axis):
            yield from _of_pair(first, second, places, axis)


def _place(one: Measured, axis: str) -> float | None:
    """Return where a cell stands on the axis; None for one without a single rate of its links."""
    if axis == NODES:
        return float(one.cell.num_nodes)
    try:
        return parse_rate(one.config.link) / 1e6 if one.config.link else None
    except BadInput:  # the links of nodes differ
        return None


def _rivals(a: Measured, b: Measured, axis: str) -> bool:
    """Whether two curves are of two strategies, equal work and bytes per number, and the same nodes or links."""
    held = a.config.link == b.config.link if axis == NODES else a.cell.num_nodes == b.cell.num_nodes
    alike = a.cell.bytes_per_number == b.cell.bytes_per_number and same_work(a.config, b.config)
    return held and alike and _name(a.config) != _name(b.config)


def _of_pair(
    first: dict[float, Rated], second: dict[float, Rated], places: Sequence[float], axis: str
) -> Iterator[Crossing]:
    """Yield the crossings of two curves: those measured, each with the nearest that is predicted, then the others."""
    names = (_name(first[places[0]].one.config), _name(second[places[0]].one.config))
    measured = zeros(places, [math.log(first[x].one.tokens_per_s / second[x].one.tokens_per_s) for x in places])
    predicted = zeros(places, [math.log(first[x].predicted / second[x].predicted) for x in places])
    ends = (places[0], places[-1])
    for place in measured:
        nearest = min(predicted, key=lambda other: abs(math.log(other / place)), default=None)
        if nearest is not None:
            predicted.remove(nearest)
        yield Crossing(axis, names, ends, place, nearest)
    for place in predicted:
        yield Crossing(axis, names, ends, None, place)


def log_margin() -> float:
    """Return the margin as a logarithm of a ratio."""
    return math.log1p(MARGIN)


def zeros(places: Sequence[float], logs: Sequence[float]) -> list[float]:
    """Return where a logarithm of a ratio changes its sign, from beyond the margin to beyond it on the other side."""
    found, before = list[float](), -1  # the last point that is beyond the margin
    for i, value in enumerate(logs):
        if abs(value) <= log_margin():
            continue
        if before >= 0 and (value > 0) != (logs[before] > 0):
            # The first change of sign on the way; points between are within the margin.
            j = next(j for j in range(before, i) if (logs[j + 1] > 0) == (value > 0))
            low, high = math.log(places[j]), math.log(places[j + 1])
            found.append(math.exp(low + (high - low) * logs[j] / (logs[j] - logs[j + 1])))
        before = i
    return found


def _name(config: RunConfig) -> str:
    words = [config.strategy]
    if config.kind.has_servers:
        words.append(config.placement)
        words += [f"{config.num_servers} server{'s' * (config.num_servers > 1)}"] * (config.num_servers > 0)
    return " ".join(words + [config.consistency] * (config.consistency != "bsp"))


def as_text(found: Sequence[Crossing]) -> list[str]:
    """Return a line per crossing, and one of their errors; one that says so where no curves cross."""
    if not found:
        return ["crossovers: no two strategies change places within the measured nodes or links, nor are predicted to"]
    errors = [abs(one.error) for one in found if one.error is not None]
    missed = sum(one.predicted is None for one in found)
    extra = sum(one.measured is None for one in found)
    words = [f"crossovers: {len(found) - extra} measured"]
    if errors:
        words.append(f"error {sum(errors) / len(errors):.1%} in the mean, {max(errors):.1%} at most")
    words += [f"{missed} not predicted"] * bool(missed) + [f"{extra} predicted but not measured"] * bool(extra)
    return [", ".join(words), *(_line(one) for one in found)]


def _line(one: Crossing) -> str:
    at = ["none" if place is None else f"{place:,.3g}" for place in (one.measured, one.predicted)]
    error = "" if one.error is None else f" ({one.error:+.1%})"
    low, high = one.between
    return (
        f"  {one.strategies[0]} / {one.strategies[1]} over {low:g} to {high:g} {one.axis}: "
        f"measured at {at[0]}, predicted at {at[1]}{error}"
    )
