"""Many ranks in one process, each on a thread of its own, with real MPI messages between them: no launcher needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from mpi4py import MPI

from bench.config import RunConfig
from bench.rank.data import load
from bench.rank.equivalence import Weights, snapshot
from bench.rank.train import build_model, build_optimizer, train
from strategies.base import Strategy
from strategies.group import SingleGroup
from strategies.parameter_server.dedicated import ParameterServer
from strategies.parameter_server.local_steps import LocalStepsWorker
from strategies.parameter_server.memory import NodeMemory
from strategies.parameter_server.plan import Roles
from strategies.parameter_server.worker import ParameterServerWorker

DEADLINE_S = 60.0


class VirtualNode:
    """Memory that the ranks of a node share."""

    def __init__(self, ranks: range) -> None:
        self.ranks = ranks
        self.parts: dict[int, torch.Tensor] = {}
        self.message_bytes = 0  # of all messages that a rank of whatever node is ready to send, step after step
        self.all_here = threading.Barrier(max(1, len(ranks)))


class VirtualMemory(NodeMemory):
    """A node's memory where its ranks are threads."""

    def __init__(self, comm: Any, nbytes: int, sharing: bool, pinned: bool) -> None:
        self._rank, self._node = comm.rank, comm.node
        self._own = torch.empty(nbytes, dtype=torch.uint8)
        self._sharing = sharing and comm.rank in comm.node.ranks
        if self._sharing:
            comm.node.parts[comm.rank] = self._own
            comm.node.all_here.wait(DEADLINE_S)

    def of(self, rank: int) -> torch.Tensor | None:
        """The bytes of a rank's part."""
        return self._own if rank == self._rank else self._node.parts.get(rank) if self._sharing else None

    def is_visible_to(self, rank: int) -> bool:
        """Whether a rank is on this node."""
        return rank == self._rank or (self._sharing and rank in self._node.ranks)

    def sync(self) -> None:
        """Threads see what they write."""

    def free(self) -> None:
        """The threads that are left may still need it."""


class VirtualComm:
    """A rank of a world inside this process: it receives in a communicator of its own; a tag says from whom."""

    def __init__(self, comms: list[MPI.Intracomm], rank: int, node: VirtualNode) -> None:
        self._comms = comms
        self.node = node
        self.rank = rank
        self.size = len(comms)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def act(buffer: Any, other: int, tag: int = 0) -> Any:
            source, target = (other, self.rank) if "ecv" in name else (self.rank, other)
            if name.endswith("end_init"):
                self.node.message_bytes += buffer[0].nbytes
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


def run_world(
    config: RunConfig, delay: Callable[[int, int], None] = lambda worker, step: None, lonely: int = 1
) -> list[Strategy]:
    """Run all ranks of a config to their end; workers then have `final`, their last weights.

    The first `lonely` ranks are each on a node of their own, the others on one.
    """
    comms = [MPI.COMM_SELF.Dup() for _ in range(config.world_size)]
    node = VirtualNode(range(lonely, config.world_size))
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
        comm = VirtualComm(comms, rank, node)
        strategies.append(make(SingleGroup(), config, comm, roles, VirtualMemory))
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
