"""The durations of emulated compute: every layer's forward and backward, the optimizer, each worker's speed.

A layer is a module with parameters of its own, in the order of forward. Operations between two layers count for the
next one: in forward the later one (attention's products for its projection, the output head and the loss for ln_f), in
backward the one whose gradient is ready next (qkv; again ln_f). A duration thus ends when a gradient is ready.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from bench.config import BadInput, RunConfig, first_problem
from bench.config.emulation import MAX_STEP_S
from bench.devices import DEVICES
from bench.files import read_json
from bench.shape import GPTShape
from strategies.options import Given

# One channel of DDR4-2666 (JEDEC JESD79-4): 2666 million transfers of 8 bytes per second. Updates by torch's fused
# kernels on one core run at about this rate.
MEMORY_BYTES_PER_S = 2666e6 * 8
# Memory traffic of an fp32 update, bytes per parameter: reads plus writes of weight, gradient and state.
OPTIMIZER_BYTES = {"adamw": 4 * (4 + 3), "sgd": 4 * (3 + 2)}
# Knobs that must be equal in a calibration and the run that uses it, beside the shape.
MUST_MATCH = ("batch_size", "gradient_accumulation", "precision", "num_threads", "optimizer")
JITTER_STREAM = 2  # of the seed; 0 and 1 are the data's


@dataclass(frozen=True)
class Durations:
    """Seconds per step of a worker of speed 1: forward and backward by layer, summed over passes, and the optimizer."""

    forward_s: dict[str, float]
    backward_s: dict[str, float]
    optimizer_s: float

    @property
    def compute_s(self) -> float:
        """Seconds of forward and backward of a step."""
        return sum(self.forward_s.values()) + sum(self.backward_s.values())

    def slowed(self, factor: float) -> Durations:
        """Return all durations times a factor."""
        if factor == 1:
            return self
        forward_s = {layer: seconds * factor for layer, seconds in self.forward_s.items()}
        backward_s = {layer: seconds * factor for layer, seconds in self.backward_s.items()}
        return Durations(forward_s, backward_s, self.optimizer_s * factor)


Seconds = Annotated[float, Field(ge=0, le=MAX_STEP_S, allow_inf_nan=False)]


class Calibration(Given):
    """The file of `psring calibrate`: seconds of one real step by layer, and the config they are valid for."""

    shape: GPTShape
    batch_size: int
    gradient_accumulation: int
    precision: str
    num_threads: int
    optimizer: str
    measured_on: str
    steps: int
    forward_s: dict[str, Seconds]
    backward_s: dict[str, Seconds]
    optimizer_s: Seconds
    compute_cv: Seconds = 0.0  # coefficient of variation of forward and backward from step to step
    intervals: dict[str, tuple[float, float]] | None = None  # of forward, backward, optimizer
    cluster: dict[str, Any] | None = None  # what hosts and links cost: the calibration of a prediction


def durations(config: RunConfig) -> Durations:
    """Return the durations of a config, all zero without emulated compute; BadInput for an unusable source."""
    return _as_given(config).slowed(config.slowdown)


def _as_given(config: RunConfig) -> Durations:
    if config.compute != "emulated":
        return by_flops(config.gpt, 0.0, 0.0, 0.0)
    if config.compute_from is not None:
        return _calibrated(config, Path(config.compute_from))
    if config.device_model is not None:
        return _of_device(config)
    assert config.emulated_forward_s is not None  # RunConfig validates it
    assert config.emulated_backward_s is not None
    optimizer_s = config.emulated_optimizer_s
    if optimizer_s is None:
        optimizer_s = config.gpt.num_parameters * OPTIMIZER_BYTES[config.optimizer] / MEMORY_BYTES_PER_S
    return by_flops(config.gpt, config.emulated_forward_s, config.emulated_backward_s, optimizer_s)


def by_flops(shape: GPTShape, forward_s: float, backward_s: float, optimizer_s: float) -> Durations:
    """Distribute forward and backward seconds over the layers in proportion to their FLOPs."""
    return Durations(_shared(forward_flops(shape), forward_s), _shared(backward_flops(shape), backward_s), optimizer_s)


def _shared(flops: dict[str, float], seconds: float) -> dict[str, float]:
    total = sum(flops.values())
    return {layer: part / total * seconds for layer, part in flops.items()}


def forward_flops(shape: GPTShape) -> dict[str, float]:
    """FLOPs per token of every layer's forward, matrix products only, in order of forward."""
    return _flops(shape, attention_in="attention.proj", factor=2)


def backward_flops(shape: GPTShape) -> dict[str, float]:
    """FLOPs per token of every layer's backward: two products for each of forward."""
    return _flops(shape, attention_in="attention.qkv", factor=4)


def _flops(shape: GPTShape, attention_in: str, factor: int) -> dict[str, float]:
    d = shape.n_embd
    block = {
        "ln_1": 0, "attention.qkv": 3 * d * d, "attention.proj": d * d, "ln_2": 0, "fc": 4 * d * d, "proj": 4 * d * d,
    }  # fmt: skip
    block[attention_in] += 2 * shape.block_size * d  # QK^T, and its softmax times V (PaLM, appendix B)
    blocks = {f"blocks.{i}.{name}": size for i in range(shape.n_layer) for name, size in block.items()}
    sizes = {"wte": 0, "wpe": 0, **blocks, "ln_f": shape.vocab_size * d}
    return {name: float(factor * size) for name, size in sizes.items()}


def _of_device(config: RunConfig) -> Durations:
    """Return FLOPs over the achieved rate (peak × MFU); the optimizer is bound by memory bandwidth."""
    assert config.device_model is not None
    assert config.device_mfu is not None
    device = DEVICES[config.device_model]
    peak = device.peak_flops_per_s.get(config.precision)
    if peak is None:
        raise BadInput(
            f"device_model: {config.device_model} has no rate for precision: {config.precision}; "
            f"use {' or '.join(device.peak_flops_per_s)}"
        )
    seconds = config.batch_size * config.gpt.block_size * config.gpt.flops_per_token / (peak * config.device_mfu)
    optimizer_s = config.gpt.num_parameters * OPTIMIZER_BYTES[config.optimizer] / device.memory_bytes_per_s
    return by_flops(config.gpt, seconds / 3, seconds * 2 / 3, optimizer_s)


def _calibrated(config: RunConfig, path: Path) -> Durations:
    """Read a calibration; BadInput if it was measured for another config."""
    try:
        found = Calibration.model_validate(read_json(path))
    except ValidationError as error:
        problem = first_problem(error, Calibration.model_fields)
        raise BadInput(f"compute_from: {path}: {problem}; make it anew: psring calibrate --out {path}") from None
    except ValueError as error:
        raise BadInput(
            f"compute_from: {path} cannot be read ({error}); make it: psring calibrate --out {path}"
        ) from None
    pairs = [(name, getattr(found, name), getattr(config, name)) for name in MUST_MATCH]
    pairs += [(name, value, getattr(config.gpt, name)) for name, value in found.shape]
    for name, theirs, ours in pairs:
        if theirs != ours:
            raise BadInput(
                f"compute_from: {path} was measured with {name}: {theirs}, this run has {ours}; "
                f"psring calibrate with the flags of the run"
            )
    layers = list(forward_flops(config.gpt))
    if not set(layers) == set(found.forward_s) == set(found.backward_s):
        raise BadInput(
            f"compute_from: {path} has other layers than the model; make it anew: psring calibrate --out {path}"
        )
    forward_s, backward_s = ({layer: times[layer] for layer in layers} for times in (found.forward_s, found.backward_s))
    return Durations(forward_s, backward_s, found.optimizer_s)


def slowdown(config: RunConfig, worker: int, step: int) -> float:
    """Return the factor of a worker's durations in one step: lognormal jitter with mean 1, over the worker's speed."""
    if config.compute_cv == 0:
        return 1 / config.speeds[worker]
    variance = math.log1p(config.compute_cv**2)
    import numpy as np  # here: with its threads psring could not enter user namespaces (nodes/sandbox.py)

    normal = np.random.default_rng([config.seed, JITTER_STREAM, worker, step]).standard_normal()
    return math.exp(math.sqrt(variance) * float(normal) - variance / 2) / config.speeds[worker]
