"""A cell to predict: its RunConfig, what no knob says (ranks per node, the allreduce that runs), and its tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

from bench import ledger
from bench.config import RunConfig
from bench.durations import Durations
from bench.shape import GPTShape
from strategies.closed_forms import Job, payload_bytes
from strategies.sharding import server_parts

Algorithm = Literal["ring", "rabenseifner", "recursive_doubling"]


class Tensor(NamedTuple):
    """A parameter tensor: the layer it belongs to, and its number of elements."""

    layer: str
    size: int


@dataclass(frozen=True)
class Workload:
    """A model that no knob describes: its tensors in the order of backward, and what its layers take in a step."""

    tensors: tuple[Tensor, ...]
    durations: Durations


@dataclass(frozen=True)
class Cell:
    """One point to predict."""

    config: RunConfig
    ranks_per_node: int = 1  # workers that share one node and its link; dedicated servers have a node each
    two_level: bool = True  # whether the workers of a node add up first and one of them sends
    algorithm: Algorithm = "ring"  # what an allreduce runs; an MPI that is not told otherwise takes another
    workload: Workload | None = None  # trained instead of the config's GPT
    num_shards: int | None = None  # workers' nodes that serve, if not all of them do (colocated)

    @cached_property
    def num_worker_nodes(self) -> int:
        """Nodes that compute."""
        return -(-self.config.num_workers // self.ranks_per_node)

    @property
    def num_nodes(self) -> int:
        """Nodes in all, those of dedicated servers included."""
        return self.num_worker_nodes + self.config.num_servers

    @property
    def senders(self) -> int:
        """Ranks that exchange messages between nodes: one per node if its workers add up first.

        Workers that do not hold the same weights cannot add up first.
        """
        alike = not self.config.kind.gathers_weights and not self.config.kind.splits
        return self.num_worker_nodes if self.two_level and alike else self.config.num_workers

    @property
    def job(self) -> Job:
        """What the closed form of the strategy's volume depends on."""
        if self.workload is not None:
            return Job(self.senders, self.sizes)
        return replace(ledger.job_of(self.config), num_workers=self.senders)

    @cached_property
    def payload(self) -> int:
        """M: bytes of one copy of all gradients on the wire."""
        return payload_bytes(self.config, self.num_parameters)

    @cached_property
    def bytes_per_number(self) -> float:
        """Bytes on the wire per parameter, compression included."""
        return self.payload / self.num_parameters

    @cached_property
    def shape(self) -> GPTShape:
        """The dimensions of the config's GPT."""
        return self.config.gpt

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Tensors in the order in which backward finishes their gradients."""
        return self.workload.tensors if self.workload else tensors(self.shape)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each tensor, in the order of definition."""
        return tuple(tensor.size for tensor in reversed(self.workload.tensors)) if self.workload else self.shape.tensors

    @cached_property
    def num_parameters(self) -> int:
        """Elements of all tensors."""
        if self.workload is None:
            return self.shape.num_parameters
        return sum(tensor.size for tensor in self.workload.tensors)

    def server_parts(self) -> dict[int, int]:
        """Return how many equal parts of the parameters each rank that serves holds."""
        if self.num_shards is not None:
            return dict.fromkeys(range(self.num_shards), 1)
        return server_parts(self.config.placement, self.senders, self.config.num_servers)


@lru_cache
def tensors(shape: GPTShape) -> tuple[Tensor, ...]:
    """Return the tensors in the order in which backward finishes their gradients."""
    found = [(layer, size) for layer, sizes in shape.layer_tensors.items() for size in sizes]
    return tuple(Tensor(layer, size) for layer, size in reversed(found))
