"""What a run needs before its first step: strategy, device, data, model and optimizer, agreed by all ranks."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from bench.config import AgreedBadInput, BadInput, RunConfig
from bench.durations import durations
from bench.mpi import RankInfo
from bench.rank import data, group
from bench.rank.asleep import EmptyCorpus, EmulatedGPT, EmulatedOptimizer, ServerUpdates
from bench.rank.train import build_model, build_optimizer
from strategies import create
from strategies.base import Strategy, UnusableOptions
from strategies.group import Group


@dataclass(frozen=True)
class Built:
    """What one rank trains or serves with."""

    strategy: Strategy
    device: torch.device
    corpus: data.Corpus | None  # None: this rank only serves
    model: nn.Module
    module: nn.Module  # the model as the strategy wraps it


def build(config: RunConfig, rank_info: RankInfo, ranks: Group) -> Built:
    """Return this rank's part of a run, with rank 0's weights; BadInput on all ranks if one refuses. Collective."""
    with _refusing(config):
        strategy = create(config.strategy, ranks, config)
    device = group.agreed(ranks, lambda: pick_device(config, rank_info, strategy))
    corpus = group.agreed(ranks, lambda: None if strategy.is_server else load_data(config))
    names = [name for name in ranks.gather(corpus.name if corpus else None) if name]
    group.raise_together(ranks, _different_data(names))
    model, optimizer = group.agreed(ranks, lambda: build_training(config, strategy, device))
    with _refusing(config):
        module = strategy.prepare(model, optimizer)
    return Built(strategy, device, corpus, model, module)


@contextmanager
def _refusing(config: RunConfig) -> Iterator[None]:
    """Raise BadInput where a strategy cannot use its options with this model, which every rank finds alike."""
    try:
        yield
    except UnusableOptions as error:
        raise AgreedBadInput(f"{config.strategy}: {error}") from None


def pick_device(config: RunConfig, rank_info: RankInfo, strategy: Strategy) -> torch.device:
    """Return where this rank computes: a GPU per local rank, the CPU, or torch's meta device for a server."""
    if strategy.is_server:
        return torch.device("meta")
    if (
        config.compute != "real"
        or config.device == "cpu"
        or (config.device == "auto" and not torch.cuda.is_available())
    ):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput(f"device: no CUDA device on {socket.gethostname()}; use --device cpu")
    device = torch.device("cuda", rank_info.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def load_data(config: RunConfig) -> data.Corpus:
    """Return what to train on; reads nothing where compute is emulated."""
    return data.load(config) if config.compute == "real" else EmptyCorpus()


def _different_data(names: list[str]) -> str | None:
    others = [name for name in names if name != names[0]]
    return f"data: the workers read different tokens: {names[0]} and {others[0]}" if others else None


def build_training(
    config: RunConfig, strategy: Strategy, device: torch.device
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the model and the optimizer; emulated ones where compute is, on workers and on servers."""
    if config.compute == "real":
        real = build_model(config, device)
        return real, build_optimizer(config, real)
    times = durations(config)
    emulated = None if strategy.is_server else EmulatedGPT(config, times, strategy.worker, strategy)
    model: nn.Module = emulated or build_model(config, device)
    # Where each weight is updated on one rank in every step, that is done beside the passes: on servers or on another
    # thread of the worker's rank.
    beside = config.streams_weights and config.sync_every == 1
    schedule = emulated.schedule if emulated and not beside else ServerUpdates()
    seconds_per_number = times.optimizer_s / config.gpt.num_parameters
    return model, EmulatedOptimizer(model.parameters(), seconds_per_number, schedule)
