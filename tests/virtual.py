"""Many ranks in one process, each on a thread of its own, with real MPI messages between them: no launcher needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from mpi4py import MPI

from bench.config import RunConfig
from bench.data import load
from bench.equivalence import Weights, snapshot
from bench.train import build_model, build_optimizer, train
from bench.worker import make_options
from strategies.base import SingleGroup, Strategy
from strategies.parameter_server.local_steps import LocalStepsWorker
from strategies.parameter_server.plan import Roles
from strategies.parameter_server.server import ParameterServer
from strategies.parameter_server.worker import ParameterServerWorker

DEADLINE_S = 60.0


class VirtualComm:
    """A rank of a world inside this process: it receives in a communicator of its own; a tag says from whom."""

    def __init__(self, comms: list[MPI.Intracomm], rank: int) -> None:
        self._comms = comms
        self.rank = rank
        self.size = len(comms)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def act(buffer: object, other: int, tag: int = 0) -> Any:
            source, target = (other, self.rank) if "ecv" in name else (self.rank, other)
            return getattr(self._comms[target], name)(buffer, 0, tag * self.size + source)

        return act

    def Iprobe(self, source: int, tag: int, status: MPI.Status) -> bool:
        """Whether anything has arrived here; its status then says from which rank and with which tag."""
        if not self._comms[self.rank].Iprobe(source, tag, status):
            return False
        tag, rank = divmod(status.Get_tag(), self.size)
        status.Set_source(rank)
        status.Set_tag(tag)
        return True

    def Free(self) -> None:
        """The others may still need it."""


def run_world(config: RunConfig, delay: Callable[[int, int], None] = lambda worker, step: None) -> list[Strategy]:
    """Run all ranks of a config to their end; workers then have `final`, their last weights."""
    comms = [MPI.COMM_SELF.Dup() for _ in range(config.world_size)]
    roles = Roles.make(config.placement, config.world_size, config.num_servers)
    strategies: list[Strategy] = []
    failures: list[BaseException] = []

    def act(strategy: Strategy) -> None:
        try:
            serve(config, strategy) if strategy.is_server else work(config, strategy, delay)
        except BaseException as error:
            failures.append(error)
            raise

    worker = ParameterServerWorker if config.sync_every == 1 else LocalStepsWorker
    for rank in range(config.world_size):
        make: Any = worker if rank in roles.workers else ParameterServer
        strategies.append(make(SingleGroup(), make_options(config), VirtualComm(comms, rank), roles))
    threads = [threading.Thread(target=act, args=(strategy,), daemon=True) for strategy in strategies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not failures
    assert not any(thread.is_alive() for thread in threads), "the ranks wait for each other"
    for comm in comms:
        comm.Free()
    return strategies


def serve(config: RunConfig, strategy: Strategy) -> None:
    model = model_on(config, torch.device("meta"))
    strategy.prepare(model, build_optimizer(config, model))
    strategy.serve()
    strategy.close()


def work(config: RunConfig, strategy: Any, delay: Callable[[int, int], None]) -> None:
    model = model_on(config, torch.device("cpu"))
    module = strategy.prepare(model, build_optimizer(config, model))
    strategy.losses = []
    for step in train(config, module, strategy, load(config), torch.device("cpu")):
        delay(strategy.worker, step.step)
        strategy.losses.append(step.loss)
    strategy.close()
    strategy.final = snapshot(model)


_seeding = threading.Lock()  # build_model seeds torch's one generator


def model_on(config: RunConfig, device: torch.device) -> Any:
    with _seeding:
        return build_model(config, device)


def final_weights(strategies: list[Strategy]) -> list[Weights]:
    """The last weights of each worker."""
    return [strategy.final for strategy in strategies if hasattr(strategy, "final")]
