"""A short training from the start, with a fresh strategy on the same ranks, that the equivalence gate watches.

The measured run itself is left alone: copies of its weights would take time and memory in its steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from bench.config import GATE_STEPS, RunConfig
from bench.mpi import RankInfo
from bench.rank.build import Built, build
from bench.rank.data import Corpus
from bench.rank.train import train
from bench.rank.weights import ForwardWeights, Weights, snapshot
from bench.records import StepRecord
from strategies.base import Strategy
from strategies.group import Group

GATE_BYTES = 1 << 30  # of copies of the weights on rank 0: a large model is watched for fewer steps
MIN_GATE_STEPS = 3
GRADIENT_STEPS = 2


@dataclass(frozen=True)
class Watched:
    """What one worker did in a rehearsal; only worker 0 keeps weights."""

    weights: list[Weights]  # those that the forward of step 0, 1, ... read, then those after close()
    scales: list[float]  # the loss scale in step 0, 1, ... and after the last
    losses: list[float]  # NaN where this worker has none: the model is split, and another worker has the output


def rehearsals(config: RunConfig) -> list[RunConfig]:
    """Return what the gate trains: the run's first steps, and steps whose change of the weights is the mean gradient.

    adamw and clipping hide a constant factor of the gradient. Plain SGD without clipping does not.
    """
    steps = min(config.total_steps, GATE_STEPS, max(MIN_GATE_STEPS, GATE_BYTES // (4 * config.gpt.num_parameters)))
    first = config.model_copy(update={"warmup_steps": 0, "steps": steps})
    if config.optimizer == "sgd" and config.clip_norm is None:
        return [first]
    plain = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 1.0, "clip_norm": None}
    return [first, first.model_copy(update={**plain, "steps": min(steps, GRADIENT_STEPS)})]


@dataclass(frozen=True)
class Rehearsal:
    """A short training and what each worker did in it (rank 0; nothing elsewhere)."""

    config: RunConfig
    workers: list[Watched]
    built: Built | None = None  # freed with this: a library's own threads may still end while others train on


def rehearse(config: RunConfig, rank_info: RankInfo, ranks: Group) -> list[Rehearsal]:
    """Train what the gate of a run compares. Collective."""
    return [_rehearse(each, rank_info, ranks) for each in rehearsals(config)]


def _rehearse(config: RunConfig, rank_info: RankInfo, ranks: Group) -> Rehearsal:
    built = build(config, rank_info, ranks)
    watched = None
    if built.corpus is None:
        built.strategy.serve()
        built.strategy.close()
    else:
        watched = watch(config, built.model, built.module, built.strategy, built.corpus, built.device)
    return Rehearsal(config, [each for each in ranks.gather(watched) if each is not None], built)


def watch(
    config: RunConfig, model: nn.Module, module: nn.Module, strategy: Strategy, corpus: Corpus, device: torch.device,
    after_step: Callable[[StepRecord], None] = lambda step: None,
) -> Watched:  # fmt: skip
    """Train this worker for all steps and close its strategy; return what it did."""
    reads = ForwardWeights(model) if strategy.worker == 0 or config.kind.splits else None
    watched = Watched([], [strategy.scaler.scale], [])

    def keep(weights: Weights) -> None:
        whole = strategy.whole(weights)
        if strategy.worker == 0:
            watched.weights.append(whole)

    for step in train(config, module, strategy, corpus, device):
        watched.losses.append(math.nan if step.loss is None else step.loss)
        watched.scales.append(strategy.scaler.scale)
        if reads:
            keep(reads.take())
        after_step(step)
    strategy.close()
    if reads:
        keep(snapshot(model))
        reads.remove()
    return watched
