"""Many ranks in one process, each on a thread of its own, with real MPI messages between them: no launcher needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from mpi4py import MPI

from bench.config import RunConfig
from bench.rank.rehearsal import Watched, watch
from bench.rank.train import build_model, build_optimizer
from bench.rank.weights import Weights, snapshot
from strategies.base import Strategy, WorkerOptimizer, torch_dtype
from strategies.group import SingleGroup
from strategies.mpi_ring import MPIRing
from strategies.parameter_server.dedicated import ParameterServer
from strategies.parameter_server.local_steps import LocalStepsWorker
from strategies.parameter_server.memory import NodeMemory
from strategies.parameter_server.plan import Roles
from strategies.parameter_server.worker import ParameterServerWorker
from strategies.zero import Zero
from tests.support.worlds import corpus

DEADLINE_S = 60.0


class VirtualNode:
    """Memory that the ranks of a node share."""

    def __init__(self, ranks: range, world_size: int) -> None:
        self.ranks = ranks
        self.given: dict[int, list[torch.Tensor]] = {}  # the gradients of each worker that shares its sum
        self.all_ranks = threading.Barrier(world_size)
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

    def Dup(self) -> VirtualComm:
        """A rank has one communicator."""
        return self

    def Bcast(self, buffer: Any) -> None:
        """Every rank begins with the same weights."""

    def Free(self) -> None:
        """The others may still need it."""


class SharedSum(WorkerOptimizer):
    """Stands for a library's allreduce: gradients divided and summed in the wire dtype, in rank order."""

    def __init__(self, group: VirtualGroup, options: RunConfig) -> None:
        super().__init__(group, options)
        self._node = group.comm.node

    def prepare(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.nn.Module:
        """Keep the model, too."""
        self._model: Any = model
        return super().prepare(model, optimizer)

    def synchronize(self) -> None:
        """Give every parameter the mean gradient of all workers."""
        wire = torch_dtype(self.options.wire_dtype)
        self._node.given[self.worker] = [p.grad.to(wire).div_(self.num_workers) for p in self._model.parameters()]
        self._node.all_ranks.wait(DEADLINE_S)
        parts = zip(*(self._node.given[worker] for worker in range(self.num_workers)), strict=True)
        for parameter, gradients in zip(self._model.parameters(), parts, strict=True):
            parameter.grad = sum(gradients).to(parameter.dtype)
        self._node.all_ranks.wait(DEADLINE_S)


class VirtualGroup(SingleGroup):
    """The ranks of a world inside this process."""

    def __init__(self, comm: VirtualComm) -> None:
        self._virtual = comm
        self.rank, self.size = comm.rank, comm.size

    @property
    def comm(self) -> Any:
        """The one communicator."""
        return self._virtual


@dataclass(frozen=True)
class Plant:
    """What is done to every rank before its strategy prepares: a bug for the equivalence gate, or nothing."""

    optimizer: Callable[[torch.optim.Optimizer, torch.nn.Module], None] = lambda optimizer, model: None
    model: Callable[[int, torch.nn.Module], None] = lambda worker, model: None
    strategy: Callable[[Any], None] = lambda strategy: None


HONEST = Plant()


def make_ranks(config: RunConfig, comms: list[MPI.Intracomm], lonely: int) -> list[Any]:
    """The strategies of all ranks; ddp's is one that adds as a library does."""
    node = VirtualNode(range(lonely, config.world_size), config.world_size)
    ranks = [VirtualComm(comms, rank, node) for rank in range(config.world_size)]
    if config.strategy != "parameter_server":
        make_one: Any = {"mpi_ring": MPIRing, "zero": Zero}.get(config.strategy, SharedSum)
        return [make_one(VirtualGroup(comm), config) for comm in ranks]
    roles = Roles.make(config.placement, config.world_size, config.num_servers)
    worker = ParameterServerWorker if config.sync_every == 1 else LocalStepsWorker
    make: dict[bool, Any] = {True: worker, False: ParameterServer}
    return [make[comm.rank in roles.workers](SingleGroup(), config, comm, roles, VirtualMemory) for comm in ranks]


def run_world(
    config: RunConfig, delay: Callable[[int, int], None] = lambda worker, step: None, lonely: int = 1,
    plant: Plant = HONEST,
) -> list[Strategy]:  # fmt: skip
    """Run all ranks of a config to their end; workers then have `final`, their last weights, and `watched`.

    The first `lonely` ranks are each on a node of their own, the others on one.
    """
    torch.set_num_threads(config.num_threads)
    comms = [MPI.COMM_SELF.Dup() for _ in range(config.world_size)]
    strategies = make_ranks(config, comms, lonely)
    failures: list[BaseException] = []

    def act(strategy: Strategy) -> None:
        try:
            serve(config, strategy, plant) if strategy.is_server else work(config, strategy, delay, plant)
        except BaseException as error:
            failures.append(error)
            raise

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


def serve(config: RunConfig, strategy: Strategy, plant: Plant) -> None:
    model = model_on(config, torch.device("meta"))
    prepare(config, strategy, model, plant)
    strategy.serve()
    strategy.close()


def prepare(config: RunConfig, strategy: Strategy, model: torch.nn.Module, plant: Plant) -> torch.nn.Module:
    optimizer = build_optimizer(config, model)
    plant.optimizer(optimizer, model)
    plant.strategy(strategy)
    return strategy.prepare(model, optimizer)


def work(config: RunConfig, strategy: Any, delay: Callable[[int, int], None], plant: Plant) -> None:
    model = model_on(config, torch.device("cpu"))
    plant.model(strategy.worker, model)
    module = prepare(config, strategy, model, plant)
    strategy.watched = watch(
        config, model, module, strategy, corpus(config), torch.device("cpu"),
        after_step=lambda step: delay(strategy.worker, step.step),
    )  # fmt: skip
    strategy.final = snapshot(model)


_seeding = threading.Lock()  # build_model seeds torch's one generator


def model_on(config: RunConfig, device: torch.device) -> Any:
    with _seeding:
        return build_model(config, device)


def watched(strategies: list[Strategy]) -> list[Watched]:
    """What each worker did."""
    return [strategy.watched for strategy in strategies if hasattr(strategy, "watched")]


def final_weights(strategies: list[Strategy]) -> list[Weights]:
    """The last weights of each worker."""
    return [strategy.final for strategy in strategies if hasattr(strategy, "final")]
