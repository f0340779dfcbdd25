"""A cell to predict: its RunConfig, what no knob says (ranks per node, the allreduce that runs), and its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

from bench.config import RunConfig
from bench.shape import GPTShape

Algorithm = Literal["ring", "rabenseifner", "recursive_doubling"]


class Tensor(NamedTuple):
    """A parameter tensor: the layer it belongs to, and its number of elements."""

    layer: str
    size: int


@dataclass(frozen=True)
class Cell:
    """One point to predict."""

    config: RunConfig
    ranks_per_node: int = 1  # workers that share one node and its link; dedicated servers have a node each
    two_level: bool = True  # whether the workers of a node add up first and one of them sends
    algorithm: Algorithm = "ring"  # what an allreduce runs; an MPI that is not told otherwise takes another

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
        """Ranks that exchange messages between nodes: one per node if its workers add up first."""
        return self.num_worker_nodes if self.two_level else self.config.num_workers

    @cached_property
    def shape(self) -> GPTShape:
        """The model's dimensions."""
        return self.config.gpt

    @cached_property
    def payload(self) -> int:
        """M: bytes of one copy of all gradients on the wire."""
        return self.config.wire_bytes

    @cached_property
    def bytes_per_number(self) -> float:
        """Bytes on the wire per parameter, compression included."""
        return self.payload / self.shape.num_parameters


@lru_cache
def tensors(shape: GPTShape) -> tuple[Tensor, ...]:
    """Return the tensors in the order in which backward finishes their gradients."""
    found = [(layer, size) for layer, sizes in shape.layer_tensors.items() for size in sizes]
    return tuple(Tensor(layer, size) for layer, size in reversed(found))
