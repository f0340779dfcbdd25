"""How many steps a cell takes that says `measure_s`: as many as one worker alone does in that time on this machine.

One worker's step is a cell's compute without communication: it is measured by a probe before the first launch, or given
where compute is emulated. Cells with equal compute thus take equally many steps, whatever their strategy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field, ValidationError

from bench import devices, environment
from bench.config import BadInput, RunConfig, first_problem, make_config
from bench.config.emulation import Emulation
from bench.config.network import Network
from bench.durations import durations
from strategies import catalogue
from strategies.options import STRATEGY_KNOBS, Given

MIN_STEPS = 3
MAX_REPEATS = 100_000
MIN_STEP_S = 1e-6
WARMUP_SHARE = 1 / 3  # of the measured steps, if a block gives no warmup_steps
SLOW_PRECISION_SHARE = 1 / 4  # of measure_s, for a precision that the processor computes in software
PROBE_STEPS = {"steps": 3, "warmup_steps": 2, "eval_batches": 0, "check_equivalence": False}
FLOPS_PER_S = 2e10  # of a core in fp32, where nothing was measured


class OneWorker(Given):
    """The step of one worker, alone; what probes found is stored in a folder's sweep.yaml, which is resumed alike."""

    step_s: float = Field(gt=0)
    in_software: bool = False  # the processor has no instructions for the precision
    knobs: dict[str, Any] = Field(default={})  # of the probe, that are not the defaults


Probed = Mapping[str, OneWorker]  # by digest of the probe


def by_probe(found: Iterable[OneWorker]) -> Probed:
    """Return what probes found by the digest of their config, under which `one_worker` finds it."""
    return {make_config(each.knobs, "probed").digest(): each for each in found}


class BlockKeys(Given):
    """What a block of a sweep file says beside the knobs of its runs."""

    stage: int = Field(1, ge=1)  # all repeats of a stage come before those of the next
    repeats: int | None = Field(None, ge=1, le=MAX_REPEATS)  # of its cells, instead of the sweep's
    measure_s: float | None = Field(None, gt=0)  # instead of steps: seconds of one worker's measured steps


def split(values: Mapping[str, Any], where: str) -> tuple[BlockKeys, dict[str, Any]]:
    """Return the block's own keys among some values, and the knobs; BadInput for a wrong one."""
    own = {name: value for name, value in values.items() if name in BlockKeys.model_fields}
    knobs = {name: value for name, value in values.items() if name not in own}
    try:
        keys = BlockKeys.model_validate(own)
    except ValidationError as error:
        raise BadInput(f"{where}: {first_problem(error, BlockKeys.model_fields)}") from None
    if keys.measure_s is not None and "steps" in knobs:
        raise BadInput(f"{where}: measure_s: it decides the number of steps; leave out steps, or measure_s")
    if keys.measure_s is not None and knobs.get("compute") == "none":
        raise BadInput(f"{where}: measure_s: compute: none has no compute to time; give steps")
    if keys.measure_s is not None:  # placeholders that are valid together
        every = knobs.get("sync_every", 1)
        knobs = {"steps": every, "warmup_steps": every, **knobs}
    return keys, knobs


def with_steps(config: RunConfig, measure_s: float | None, probed: Probed, *, warmup_given: bool) -> RunConfig:
    """Return the config with the steps that fit into `measure_s` seconds of one worker's compute, if that is given."""
    if measure_s is None:
        return config
    found = one_worker(config, probed)
    steps = max(MIN_STEPS, round(measure_s * (SLOW_PRECISION_SHARE if found.in_software else 1) / found.step_s))
    warmup_steps = config.warmup_steps if warmup_given else max(1, round(steps * WARMUP_SHARE))
    every = config.sync_every
    return config.model_copy(update={"steps": _multiple(steps, every), "warmup_steps": _multiple(warmup_steps, every)})


def _multiple(steps: int, every: int) -> int:
    return math.ceil(steps / every) * every


def one_worker(config: RunConfig, probed: Probed) -> OneWorker:
    """Return the step of one worker of speed 1, alone: as emulated, as probed, else guessed from its FLOPs."""
    if config.compute != "real":
        slept = durations(config)
        return OneWorker(step_s=max(slept.compute_s + slept.optimizer_s, MIN_STEP_S))
    found = probed.get(probe(config).digest())
    if found is not None:
        return found
    cores = min(environment.cores(), config.num_threads)
    flops = config.batch_size * config.gpt.block_size * config.gpt.flops_per_token
    return OneWorker(step_s=flops / (FLOPS_PER_S * cores), in_software=computed_in_software(config))


def computed_in_software(config: RunConfig) -> bool:
    """Return whether a worker on this machine computes in a precision for which its processor has no instructions."""
    if config.compute != "real" or devices.cpu_computes(config.precision):
        return False
    return config.device == "cpu" or (config.device == "auto" and environment.collect()["gpu"] is None)


def probe(config: RunConfig) -> RunConfig:
    """Return the run that times one worker's step: one process on this machine, a few steps of the same compute."""
    alike = ("strategy", "num_workers", "launcher", *STRATEGY_KNOBS, *Network.model_fields, *Emulation.model_fields)
    defaults = {name: RunConfig.model_fields[name].default for name in alike}
    own = {"strategy": catalogue.LOCAL.name, "num_workers": 1, "num_servers": 0, "tuned": None}
    return config.model_copy(update={**defaults, **own, **PROBE_STEPS})


def probes(cells: Iterable[RunConfig], probed: Probed) -> list[RunConfig]:
    """Return the probes of some cells that have not run yet, each once."""
    wanted = {config.digest(): config for config in map(probe, cells)}
    return [config for digest, config in wanted.items() if digest not in probed]
