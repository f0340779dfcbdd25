"""Measure the duration of every layer of the real GPT on this machine, for emulated compute."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from statistics import median

import torch
from torch import nn

from bench.config import RunConfig
from bench.durations import MUST_MATCH, Calibration, forward_flops
from bench.environment import cpu_name
from bench.intervals import median_interval
from bench.mpi import RankInfo
from bench.rank import data
from bench.rank.build import pick_device
from bench.rank.clock import DeviceClock, Mark
from bench.rank.train import build_model, build_optimizer, train
from strategies.gradients import on_gradient
from strategies.group import SingleGroup
from strategies.local import Local

Seconds = dict[str, float]


class LayerTimer:
    """Measures seconds per layer: in forward until its module returns, in backward until its gradients are ready.

    Time between two layers counts for the later one, time after the last layer for the last one.
    """

    def __init__(self, model: nn.Module, layers: list[str], clock: DeviceClock) -> None:
        self._clock = clock
        self._layers = layers
        self._last = clock.mark()
        self._passed: list[tuple[str, str, Mark, Mark]] = []  # phase, layer, begin, end
        model.register_forward_pre_hook(lambda *_: self._begin_forward())
        for name in layers:
            layer = model.get_submodule(name)
            layer.register_forward_hook(partial(self._layer_ended, "forward", name))
            for parameter in layer.parameters():
                on_gradient(parameter, partial(self._layer_ended, "backward", name))
        model.register_forward_hook(partial(self._layer_ended, "forward", layers[-1]))

    def _begin_forward(self) -> None:
        self._last = self._clock.mark()

    def _layer_ended(self, phase: str, layer: str, *_: object) -> None:
        now = self._clock.mark()
        self._passed.append((phase, layer, self._last, now))
        self._last = now

    def pop_seconds(self) -> dict[str, Seconds]:
        """Return the seconds by phase and layer since the last call."""
        seconds = {phase: dict.fromkeys(self._layers, 0.0) for phase in ("forward", "backward")}
        for phase, layer, begin, end in self._passed:
            seconds[phase][layer] += self._clock.between(begin, end)
        self._passed.clear()
        return seconds


def calibrate(config: RunConfig, rank_info: RankInfo) -> Calibration:
    """Train one worker alone; return the median seconds of every layer over the measured steps.

    BadInput if the data or the device cannot be used.
    """
    config = config.model_copy(update={"compute": "real"})  # the flags may be those of a run with emulated compute
    corpus = data.load(config)
    torch.set_num_threads(config.num_threads)
    strategy = Local(SingleGroup(), config)
    device = pick_device(config, rank_info, strategy)
    model = build_model(config, device)
    timer = LayerTimer(model, list(forward_flops(config.gpt)), DeviceClock(device))
    module = strategy.prepare(model, build_optimizer(config, model))
    samples, optimizer_s = [], []
    for step in train(config, module, strategy, corpus, device):
        seconds = timer.pop_seconds()
        if not step.warmup:
            samples.append(seconds)
            optimizer_s.append(step.optimizer_s)
    layers = [_medians([sample[phase] for sample in samples]) for phase in ("forward", "backward")]
    return Calibration(
        **config.model_dump(include=set(MUST_MATCH)),
        shape=config.gpt,
        measured_on=cpu_name() if device.type == "cpu" else torch.cuda.get_device_name(device),
        steps=config.steps,
        forward_s=layers[0],
        backward_s=layers[1],
        optimizer_s=median(optimizer_s),
        compute_cv=_variation([sum(_totals(sample)) for sample in samples]),
        intervals=_intervals(
            [*(sum(each.values()) for each in layers), median(optimizer_s)],
            [*zip(*map(_totals, samples), strict=True), optimizer_s],
        ),
    )


def _totals(sample: dict[str, Seconds]) -> tuple[float, float]:
    """Return the seconds of all layers' forward and of all layers' backward."""
    return sum(sample["forward"].values()), sum(sample["backward"].values())


def _variation(seconds: Sequence[float]) -> float:
    """Return the coefficient of variation; 0 of a single step."""
    return statistics.stdev(seconds) / statistics.mean(seconds) if len(seconds) > 1 else 0.0


def _intervals(values: Sequence[float], series: Sequence[Sequence[float]]) -> dict[str, tuple[float, float]]:
    """Return the intervals of forward, backward and optimizer, as wide as those of their medians; none of one step.

    A sum of the layers' medians is not the median of the sums: it gets the latter's relative interval.
    """
    found = {}
    for name, value, each in zip(("forward_s", "backward_s", "optimizer_s"), values, series, strict=True):
        interval = median_interval(each)
        if interval.low == interval.low and interval.value > 0:
            found[name] = (value * interval.low / interval.value, value * interval.high / interval.value)
    return found


def _medians(samples: list[Seconds]) -> Seconds:
    return {layer: median(sample[layer] for sample in samples) for layer in samples[0]}
