"""Fit the costs of hosts and links to a folder's own runs, with bands for what is predicted from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from bench.config import BadInput, RunConfig
from bench.nodes.layout import BURST_BYTES
from bench.predict.allreduce import slowest_link
from bench.predict.calibration import ClusterCalibration
from bench.predict.cell import Cell
from bench.predict.measured import Measured
from bench.predict.simulate import expected

Vector = npt.NDArray[np.float64]
# What is fitted: where the search begins, and how far a plausible value lies from there. The distance weighs as one
# residual of `PRIOR_WEIGHT`, so that a cost that no run shows stays where it began.
SCALES = {
    "latency_s": (50e-6, 100e-6),
    "message_cpu_s": (10e-6, 20e-6),
    "add_s_per_byte": (0.2e-9, 0.5e-9),
    "copy_s_per_byte": (0.1e-9, 0.5e-9),
    "step_overhead_s": (0.5e-3, 1e-3),
    "cycle_s": (0.2e-3, 1e-3),
    "duplex_factor": (1.01, 0.03),
}
LOWEST = {"duplex_factor": 1.0}
PRIOR_WEIGHT = 0.3
RESIDUAL = 0.01  # a residual of 1: one per cent of a step
MIN_SPREAD = 0.01  # of any prediction, as a logarithm
QUANTILE_90 = 1.645
SAMPLES, SEED = 16, 1


@dataclass(frozen=True)
class Fit:
    """A calibration, equally plausible ones (bootstrap), and what is known about how well it predicts."""

    calibration: ClusterCalibration
    samples: tuple[ClusterCalibration, ...]
    spread: float  # of predicted over measured for a cell left out of the fit, as a logarithm
    ranges: Ranges
    regimes: frozenset[str] | None = None  # None: whatever the model knows

    def check_regime(self, cell: Cell, folder: str) -> None:
        """Raise BadInput for a cell of which nothing alike was measured."""
        if self.regimes is not None and regime(cell.config) not in self.regimes:
            raise BadInput(
                f"{regime(cell.config)}: not measured in {folder}, so that its costs are not known; "
                f"measured are: {', '.join(sorted(self.regimes))}"
            )

    def half_band(self, cell: Cell) -> float:
        """Return half the 90 % band of the step, as a logarithm: bootstrap, cells left out, and distance."""
        steps = [expected(cell, sample).step_s for sample in self.samples]
        of_fit = float(np.std(np.log(steps))) if steps else 0.0
        return math.hypot(QUANTILE_90 * of_fit, self.half_band_of_distance(cell))

    def half_band_of_distance(self, cell: Cell) -> float:
        """Return the same without the bootstrap, which takes a prediction per sample."""
        distance = math.log(math.prod(self.ranges.beyond(cell, self.calibration).values()))
        return QUANTILE_90 * self.spread * (1 + distance)


@dataclass(frozen=True)
class Ranges:
    """The smallest and the largest of what was measured, by name; empty: nothing was."""

    measured: dict[str, tuple[float, float]]

    @staticmethod
    def of(measured: Sequence[Measured], calibration: ClusterCalibration) -> Ranges:
        """Return the ranges of measured cells."""
        points = [_point(one.cell, calibration) for one in measured]
        names = {name for point in points for name in point}
        values = {name: [point[name] for point in points if name in point] for name in names}
        return Ranges({name: (min(found), max(found)) for name, found in values.items()})

    def beyond(self, cell: Cell, calibration: ClusterCalibration) -> dict[str, float]:
        """Return by what factor each quantity of a cell lies outside its range, above 1.02; none if it is inside."""
        factors = {}
        for name, value in _point(cell, calibration).items():
            low, high = self.measured.get(name, (value, value))
            factor = max(value / high, low / value, 1.0) if value and high and low else 1.0
            if factor > 1.02:
                factors[name] = factor
        return factors


def _point(cell: Cell, calibration: ClusterCalibration) -> dict[str, float]:
    """Return the quantities of a cell that a prediction may extrapolate."""
    point = {"nodes": float(cell.num_nodes)}
    if cell.config.world_size > 1 and cell.config.kind.communicates:
        point["payload"] = float(cell.payload)
        with suppress(BadInput):  # no link is known: ranks of one machine
            point["link"] = slowest_link(cell, calibration)
    return point


def regime(config: RunConfig) -> str:
    """Return what must have been measured for a prediction: the strategy and what changes its messages in kind."""
    words = [config.strategy]
    if config.kind.has_servers:
        words += [config.placement, config.consistency] if config.consistency != "bsp" else [config.placement]
    words += [config.compression] * (config.compression != "none")
    return " ".join(words)


def fit(measured: Sequence[Measured], cores: int | None = None) -> Fit:
    """Fit the costs to measured cells; `cores`: of the machine that emulated all nodes."""
    names, start = _names(measured), _start(measured, cores)
    launches = [np.array(one.seconds) for one in measured]
    logs = np.log([float(np.median(found)) for found in launches])

    def residuals(values: Vector, observed: Vector) -> Vector:
        found = _with(start, names, values)
        steps = [expected(one.cell, found).step_s for one in measured]
        begin, distance = _begin(start, names)
        prior = PRIOR_WEIGHT * (values - begin) / distance
        return np.concatenate([(np.log(steps) - observed) / RESIDUAL, prior])

    from scipy.optimize import least_squares

    begin, distance = _begin(start, names)
    lowest = np.array([LOWEST.get(name, 0.0) for name in names])
    highest = np.array([2.0 if name == "duplex_factor" else np.inf for name in names])
    found = least_squares(
        residuals, np.clip(begin, lowest + 1e-12, highest), bounds=(lowest, highest), x_scale=distance,
        loss="soft_l1", args=(logs,), max_nfev=30, diff_step=np.full(len(begin), 1e-3),
    )  # fmt: skip
    jacobian = np.asarray(found.jac)
    samples = _bootstrap(jacobian, launches, logs)
    values = np.asarray(found.x)
    drawn = [_with(start, names, np.clip(values + step, lowest, highest)) for step in samples]
    intervals = {name: _interval([getattr(one, name) for one in drawn]) for name in names}
    ranges = Ranges.of(measured, start)
    fewest, most = ranges.measured["nodes"]
    calibration = _with(start, names, values).model_copy(
        update={"intervals": intervals, "measured_nodes": (int(fewest), int(most))}
    )
    spread = _left_out(jacobian, np.asarray(found.fun), len(measured))
    return Fit(calibration, tuple(drawn), spread, ranges, frozenset(regime(one.config) for one in measured))


def _names(measured: Sequence[Measured]) -> list[str]:
    fused = any(one.config.kind.exchange == "fusion" and one.config.num_workers > 1 for one in measured)
    return [name for name in SCALES if name != "cycle_s" or fused]


def _begin(start: ClusterCalibration, names: Sequence[str]) -> tuple[Vector, Vector]:
    begin = [start.duplex_factor if name == "duplex_factor" else SCALES[name][0] for name in names]
    return np.array(begin), np.array([SCALES[name][1] for name in names])


def _with(start: ClusterCalibration, names: Sequence[str], values: Vector) -> ClusterCalibration:
    return start.model_copy(update=dict(zip(names, values.tolist(), strict=True)))


def _start(measured: Sequence[Measured], cores: int | None) -> ClusterCalibration:
    """Return what is read off the runs rather than fitted: rates of compute and update, and the duplex factor."""
    duplex = [one.duplex_factor for one in measured if one.duplex_factor is not None]
    given: dict[str, object] = {"duplex_factor": min(2.0, max(1.0, median(duplex) if duplex else 1.01))}
    real = [one for one in measured if one.config.compute == "real"]
    if real:
        rates = [
            one.config.batch_size * one.config.gpt.block_size * one.config.gpt.flops_per_token / one.forward_backward_s
            for one in real
        ]
        given["flops_per_s"] = median(rates)
        updates = [
            one.optimizer_s / one.config.gpt.num_parameters for one in real
            if not one.config.kind.has_servers or one.config.server_role == "sum"
        ]  # fmt: skip
        if updates:
            given["optimizer_s_per_parameter"] = median(updates)
    if all(one.config.link for one in measured if one.config.world_size > 1):
        given |= {"burst_bytes": float(BURST_BYTES)}
    return ClusterCalibration(source=f"fitted to {len(measured)} cells", **given)  # type: ignore[arg-type]


def _bootstrap(jacobian: Vector, launches: Sequence[Vector], logs: Vector) -> list[Vector]:
    """Return changes of the fitted values if other launches had been drawn: one linear step from the solution.

    A cell of one launch is given the median spread of the others.
    """
    rng = np.random.default_rng(SEED)
    deviations = [float(np.std(np.log(found), ddof=1)) for found in launches if len(found) > 1]
    spread = float(np.median(deviations)) if deviations else MIN_SPREAD
    solve = np.linalg.pinv(jacobian)
    steps = []
    for _ in range(SAMPLES):
        drawn = [
            float(np.log(np.median(rng.choice(found, len(found)))) if len(found) > 1 else log + rng.normal(0, spread))
            for found, log in zip(launches, logs, strict=True)
        ]
        change = np.zeros(len(jacobian))
        change[: len(logs)] = (np.array(drawn) - logs) / RESIDUAL
        steps.append(solve @ change)
    return steps


def _left_out(jacobian: Vector, residuals: Vector, number: int) -> float:
    """Return the root mean square of log(predicted / measured) of each cell if the fit had not seen it.

    For a linear model a residual r becomes r / (1 - h), h its leverage (Allen's PRESS).
    """
    leverage = np.clip(np.diag(jacobian @ np.linalg.pinv(jacobian))[:number], 0.0, 0.9)
    left_out = residuals[:number] / (1 - leverage) * RESIDUAL
    return max(MIN_SPREAD, float(np.sqrt(np.mean(left_out**2))))


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.05, 0.95])
    return float(low), float(high)
