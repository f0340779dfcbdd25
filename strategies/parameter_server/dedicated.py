"""A rank that only serves."""

from __future__ import annotations

from dataclasses import replace

import torch
from mpi4py import MPI
from torch import nn

from strategies.base import Observed, Strategy
from strategies.group import Group
from strategies.options import Options
from strategies.parameter_server.agreement import agree
from strategies.parameter_server.memory import MessageBuffers, NodeMemory
from strategies.parameter_server.plan import Plan, Roles
from strategies.parameter_server.progress import Progress
from strategies.parameter_server.server import Server
from strategies.timeline import KeepsTimeline, Span


class ParameterServer(Strategy, KeepsTimeline):
    """A rank that only serves."""

    is_server = True
    timeline_title = "server"

    def __init__(
        self, group: Group, options: Options, comm: MPI.Intracomm, roles: Roles,
        memory_of_node: type[NodeMemory] = NodeMemory,
    ) -> None:  # fmt: skip
        super().__init__(group, options)
        self._comm = comm
        self._roles = roles
        self._memory_of_node = memory_of_node
        self._progress = Progress(comm, options.poll_s)
        self._server = Server(comm, roles, options, self._progress, self.counters)
        self.scaler = self._server.scaler
        self._prepared = False

    @property
    def num_workers(self) -> int:
        """Ranks that train."""
        return len(self._roles.workers)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Receive worker 0's weights of this shard and distribute them. Collective.

        Only the shapes of `model` and the settings of `optimizer` are read: the model may be on the meta device.
        """
        self._plan = Plan.of(model, self._roles, self.options)
        settings = agree(self.group, self._plan.layout, model, optimizer, self.options)
        self._buffers = MessageBuffers(self._comm, self._plan, self.options, self._memory_of_node)
        self._server.prepare(self._plan, self._buffers, optimizer, settings)
        self._server.distribute_weights()
        self._server.finish_weights()
        self._prepared = True
        return model

    def observe(self) -> Observed:
        """Add the balance of the shards and the staleness of gradients here."""
        observed = replace(super().observe(), shard_imbalance=self._plan.imbalance, shares_memory=self._buffers.shares)
        return self._server.observe(observed)

    def serve(self) -> None:
        """Sum, update and return chunks until every worker has closed."""
        if not self._prepared:
            raise RuntimeError("serve() before prepare(): a server, too, prepares the model and the optimizer first")
        self._progress.wait(until=lambda: self._server.closed)
        self._server.free()

    def close(self) -> None:
        """Free the communicator and the memory. Collective."""
        self._progress.cancel()
        self._buffers.free()
        self._comm.Free()

    def start_timeline(self) -> None:
        """Record what this server does."""
        self._server.timeline.start()

    def stop_timeline(self) -> dict[str, list[Span]]:
        """Return the latest receives, sums, updates and replies."""
        return self._server.timeline.by_kind()

    def synchronize(self) -> None:
        """Raise: a server has no gradient of its own."""
        raise RuntimeError("a server calls serve()")

    def step(self) -> None:
        """Raise: a server updates inside serve()."""
        raise RuntimeError("a server calls serve()")
