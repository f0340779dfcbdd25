"""Real or emulated compute: knobs of workers that train, and of workers that sleep instead."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from strategies.options import Knobs

if TYPE_CHECKING:
    from bench.config.run import RunConfig

MAX_STEP_S = 1e5  # of emulated compute
SPEEDS = (1e-6, 1e6)


class Compute(Knobs):
    """Real, emulated or no compute."""

    compute: Literal["real", "emulated", "none"] = "real"
    """Where the time between messages comes from; real: the GPT is trained; emulated: workers sleep as long as each
    layer takes and compute nothing; none: communication alone."""


class Emulation(Knobs):
    """Durations of emulated compute; read only by workers that sleep."""

    compute_from: str | None = None
    """Emulated compute: the file of `psring calibrate` that holds the time of every layer."""
    device_model: Literal["v100", "a100", "h100", "h200"] | None = None
    """Emulated compute: device whose data sheet gives the time of every layer, FLOPs / (peak × device_mfu)."""
    device_mfu: float | None = Field(None, gt=0, le=1)
    """Share of device_model's peak rate that forward and backward reach."""
    emulated_forward_s: float | None = Field(None, ge=0, le=MAX_STEP_S)
    """Emulated compute: all forward passes of one step, seconds; shared among the layers by their FLOPs."""
    emulated_backward_s: float | None = Field(None, ge=0, le=MAX_STEP_S)
    """Emulated compute: all backward passes of one step, seconds; shared among the layers by their FLOPs."""
    emulated_optimizer_s: float | None = Field(None, ge=0, le=MAX_STEP_S)
    """Emulated compute: one update of all weights, seconds; a server sleeps its shard's part of it. None, beside the
    two above: the bytes that an update touches over 21 GB/s, the rate of one memory channel."""
    speed_factor: str | None = None
    """Emulated compute: workers whose speed is not 1, as '3=0.5' (worker 3 takes twice as long) or '0=2,*=0.8'."""
    compute_cv: float = Field(0.0, ge=0, le=100)
    """Emulated compute: coefficient of variation of a worker's step (lognormal, mean kept, seeded)."""
    target: str | None = None
    """Cluster that this run is a scale model of, as `psring scale-model` writes it down; none: it is none."""


def check(config: RunConfig) -> Iterator[str]:
    """Yield what is missing or contradictory in the durations, and durations without emulated compute."""
    if config.compute != "emulated":
        for name in config.given(Emulation.model_fields):
            yield f"{name}: compute: {config.compute} does not sleep; use compute: emulated, or leave it out"
        return
    sources: dict[str, list[object]] = {
        "compute_from": [config.compute_from],
        "device_model and device_mfu": [config.device_model, config.device_mfu],
        "emulated_forward_s and emulated_backward_s": [config.emulated_forward_s, config.emulated_backward_s],
    }
    begun = [name for name, values in sources.items() if any(value is not None for value in values)]
    if len(begun) != 1 or None in sources[begun[0]]:
        yield f"compute: emulated takes its times from exactly one of: {'; '.join(sources)}"
    if config.emulated_optimizer_s is not None and config.emulated_forward_s is None:
        yield f"emulated_optimizer_s: {begun[0]} gives it already; leave it out"
    parse_speeds(config.speed_factor, config.num_workers)


def parse_speeds(text: str | None, num_workers: int) -> list[float]:
    """'3=0.5' or '0=2,*=0.8' -> the speed of each worker; ValueError names what is wrong."""
    speeds = dict.fromkeys((str(worker) for worker in range(num_workers)), 1.0)
    given = {}
    for part in text.split(",") if text else []:
        worker, _, factor = (word.strip() for word in part.partition("="))
        if worker not in (*speeds, "*"):
            raise ValueError(
                f"speed_factor: there is no worker {worker!r} of {num_workers}; write 0=0.5, or *=0.5 for all"
            )
        try:
            given[worker] = float(factor)
        except ValueError:
            given[worker] = math.nan
        if not SPEEDS[0] <= given[worker] <= SPEEDS[1]:
            raise ValueError(
                f"speed_factor: {part.strip()!r} is no speed from 1e-6 to 1e6; write {worker}=0.5 for half the speed"
            )
    return [given.get(worker, given.get("*", speed)) for worker, speed in speeds.items()]
