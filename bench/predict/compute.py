"""When gradients are ready and weights are needed: the compute of the worker that a step waits for."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from bench.config import BadInput, RunConfig
from bench.durations import OPTIMIZER_BYTES, Durations, by_flops, durations, forward_flops
from bench.predict.calibration import ClusterCalibration
from bench.predict.cell import Cell

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Compute:
    """One step of one worker without communication, seconds. `passes`: its forward-backward passes."""

    forward: Seconds  # by layer in the order of forward, all passes together
    backward: Seconds
    optimizer_s: float  # an update of all weights
    overhead_s: float
    passes: int

    @property
    def forward_backward_s(self) -> float:
        """Forward and backward of all passes."""
        return float(self.forward.sum() + self.backward.sum())

    @property
    def ready(self) -> Seconds:
        """When each layer's gradient is ready after the last pass's backward began, in the order of forward."""
        return np.cumsum(self.backward[::-1])[::-1] / self.passes

    @property
    def before_last_backward_s(self) -> float:
        """From the first forward's begin to the last backward's."""
        return self.forward_backward_s - float(self.backward.sum()) / self.passes

    def times(self, factor: float) -> Compute:
        """Return all of it `factor` times as long."""
        return Compute(
            self.forward * factor, self.backward * factor, self.optimizer_s * factor, self.overhead_s, self.passes
        )


def of_cell(cell: Cell, calibration: ClusterCalibration) -> Compute:
    """Return the compute of a worker of speed 1 without jitter; BadInput if its time is not known."""
    config = cell.config
    found = cell.workload.durations if cell.workload else layer_durations(config, calibration)
    layers = _layers(found)
    return Compute(*layers, found.optimizer_s, calibration.step_overhead_s, config.gradient_accumulation)


def _layers(found: Durations) -> tuple[Seconds, Seconds]:
    backward = np.array([found.backward_s[layer] for layer in found.forward_s])
    return np.array(list(found.forward_s.values())), backward


def layer_durations(config: RunConfig, calibration: ClusterCalibration) -> Durations:
    """Return what the layers take: configured, measured by layer, or by FLOPs at the measured rate."""
    if config.compute == "emulated":
        return durations(config)
    if config.compute == "none":
        return by_flops(config.gpt, 0.0, 0.0, 0.0)
    per_parameter = calibration.optimizer_s_per_parameter
    if per_parameter is None:
        per_parameter = OPTIMIZER_BYTES[config.optimizer] * calibration.copy_s_per_byte / 2
    optimizer_s = per_parameter * config.gpt.num_parameters
    forward_s, backward_s = calibration.forward_s, calibration.backward_s
    if forward_s and backward_s and list(forward_s) == list(forward_flops(config.gpt)):
        return Durations(forward_s, backward_s, optimizer_s)
    if calibration.flops_per_s is None:
        raise BadInput(
            f"model: {config.model} was not measured here, and no device is given; "
            "give --device, or a calibration of this model (psring calibrate)"
        )
    seconds = config.batch_size * config.gpt.block_size * config.gpt.flops_per_token / calibration.flops_per_s
    return by_flops(config.gpt, seconds / 3, seconds * 2 / 3, optimizer_s)


def speeds(config: RunConfig, calibration: ClusterCalibration) -> list[float]:
    """Return each worker's speed."""
    found = calibration.speed_factors
    if found is None or config.speed_factor is not None:
        return config.speeds
    return [found[min(worker, len(found) - 1)] for worker in range(config.num_workers)]


def jitter(config: RunConfig, calibration: ClusterCalibration) -> float:
    """Return the coefficient of variation of a worker's step."""
    return config.compute_cv or calibration.compute_cv or 0.0


def slowest(config: RunConfig, calibration: ClusterCalibration) -> float:
    """Return the mean of the slowest worker's step over that of a worker of speed 1."""
    cv = jitter(config, calibration)
    if config.speed_factor is None and calibration.speed_factors is None:
        return expected_maximum(config.num_workers, cv)
    alike = Counter(speeds(config, calibration))
    return max(expected_maximum(number, cv) / speed for speed, number in alike.items())


@lru_cache
def expected_maximum(number: int, cv: float) -> float:
    """Return E[max of `number` lognormals of mean 1] (Blom's scores; within 1 % for cv up to 0.2)."""
    if number == 1 or cv == 0:
        return 1.0
    sigma = math.sqrt(math.log1p(cv * cv))
    score = NormalDist().inv_cdf((number - 0.375) / (number + 0.25))
    return max(1.0, math.exp(sigma * score - sigma * sigma / 2))
