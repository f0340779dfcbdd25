"""Small runs, the worlds they are tried in, and what they must end with."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from mpi4py import MPI

from bench.config import RunConfig
from bench.rank import equivalence
from bench.rank.data import load
from bench.rank.equivalence import Verdict
from bench.rank.rehearsal import Rehearsal, Watched, watch
from bench.rank.train import build_model, build_optimizer
from strategies.base import Strategy
from strategies.group import SingleGroup
from strategies.parameter_server.plan import Roles
from strategies.parameter_server.worker import ParameterServerWorker
from strategies.volume import mean_volume

CPU = torch.device("cpu")
corpus = lru_cache(maxsize=4)(load)  # a config is hashable; making synthetic tokens takes longer than a small run
WORLDS: dict[str, dict[str, object]] = {
    "1+1": {"num_workers": 1, "num_servers": 1},
    "2+1": {"num_workers": 2, "num_servers": 1},
    "3+2": {"num_workers": 3, "num_servers": 2},
    "2 colocated": {"num_workers": 2, "placement": "colocated"},
    "5 colocated": {"num_workers": 5, "placement": "colocated"},
    "3+1 mixed": {"num_workers": 3, "num_servers": 1, "placement": "mixed"},
    "2+2 mixed": {"num_workers": 2, "num_servers": 2, "placement": "mixed"},
}


def small(**values: object) -> RunConfig:
    """A run of a model of two layers."""
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 4}
    return RunConfig.model_validate({**shape, "data": "synthetic", "steps": 4, "warmup_steps": 0, **values})


def served(**values: object) -> RunConfig:
    """The same with a parameter server and small chunks."""
    return small(**{"strategy": "parameter_server", "chunk_bytes": 2048, **values})


def served_alone(**values: object) -> RunConfig:
    """The same with one worker and its server on one rank."""
    return small(strategy="parameter_server", placement="colocated", **values)


def trained(config: RunConfig, strategy: Strategy) -> Watched:
    """All steps on this rank."""
    model = build_model(config, CPU)
    module = strategy.prepare(model, build_optimizer(config, model))
    watched = watch(config, model, module, strategy, corpus(config), CPU)
    assert all(map(math.isfinite, watched.losses))
    return watched


def served_in_one_process(config: RunConfig) -> tuple[Watched, ParameterServerWorker]:
    """A worker and the server on its rank, real MPI messages between them."""
    comm, roles = MPI.COMM_SELF.Dup(), Roles.make("colocated", 1, 0)
    strategy = ParameterServerWorker(SingleGroup(), config, comm, roles)
    return trained(config, strategy), strategy


def verdict_on(config: RunConfig, *workers: Watched) -> Verdict:
    """What the gate says of a training."""
    return equivalence.compare([Rehearsal(config, list(workers))], corpus(config), CPU)


def assert_equivalent(config: RunConfig, *workers: Watched) -> None:
    """The weights are those of one process, but for rounding."""
    verdict = verdict_on(config, *workers)
    assert verdict.passed, verdict


def counted_per_step(config: RunConfig, strategies: list[Strategy]) -> list[float]:
    """What the mean worker counted, in the order of Volume's fields."""
    counted = mean_volume([strategy.observe().moved for strategy in strategies[: config.num_workers]])
    assert counted is not None
    return list(vars(counted / config.total_steps).values())
