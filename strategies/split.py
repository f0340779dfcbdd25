"""What strategies that split the model share: who holds which part of which copy, and sums over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from strategies import process_group
from strategies.allreduce import ring_volume
from strategies.base import Observed, UnusableOptions, WorkerOptimizer
from strategies.group import Group
from strategies.options import Options
from strategies.volume import Volume

if TYPE_CHECKING:
    from strategies.between_copies import ServersOfPart

BUCKET_ELEMENTS = (25 << 20) // 4  # of one allreduce between copies: DDP's default bucket, in fp32


@dataclass(frozen=True)
class Place:
    """Where a rank stands: ranks of one copy follow each other, so rank = replica * size + part."""

    rank: int
    world_size: int
    size: int  # ranks that hold one copy

    @property
    def part(self) -> int:
        """Which part of the model this rank holds, from 0."""
        return self.rank % self.size

    @property
    def replica(self) -> int:
        """Which copy of the model this rank works on, from 0."""
        return self.rank // self.size

    @property
    def num_replicas(self) -> int:
        """How many copies are trained."""
        return self.world_size // self.size

    def groups_of_replicas(self) -> list[list[int]]:
        """Return the ranks of each copy."""
        return [list(range(first, first + self.size)) for first in range(0, self.world_size, self.size)]

    def groups_of_parts(self) -> list[list[int]]:
        """Return the ranks that hold each part."""
        return [list(range(part, self.world_size, self.size)) for part in range(self.size)]


class Ranks:
    """The process group of those ranks of one list that this rank is among."""

    def __init__(self, lists: list[list[int]], rank: int) -> None:
        """Start the group of each list, None where this rank is in none of them. Collective among all ranks."""
        started = [process_group.subgroup(ranks) for ranks in lists]
        own = [(group, ranks) for group, ranks in zip(started, lists, strict=True) if rank in ranks]
        self.group: dist.ProcessGroup | None = own[0][0] if own else None
        ranks = own[0][1] if own else [rank]
        self.index, self.size = ranks.index(rank), len(ranks)

    def volume_of_sum(self, num_elements: int, element_bytes: int) -> Volume:
        """Return what an allreduce among these ranks moves on this one."""
        return ring_volume(num_elements, element_bytes, self.index, self.size)


class SplitModel(WorkerOptimizer):
    """A strategy whose workers each hold a part of a copy of the model; copies take the mean of their gradients."""

    def __init__(self, group: Group, options: Options) -> None:
        if group.size % options.model_parallel_size:
            raise UnusableOptions(
                f"{group.size} ranks cannot hold copies of model_parallel_size: {options.model_parallel_size} ranks"
            )
        super().__init__(group, options)
        self.place = Place(group.rank, group.size, options.model_parallel_size)
        self._servers: ServersOfPart | None = None

    def observe(self) -> Observed:
        """Add what servers between the copies moved."""
        observed = super().observe()
        if self._servers is None:
            return observed
        between = self._servers.observe()
        observed.moved.add(*vars(between.moved).values())
        return replace(observed, shares_memory=between.shares_memory)

    @property
    def replica(self) -> int:
        """Which copy of the model this worker trains, from 0."""
        return self.place.replica

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Start the process groups and give every rank the whole of rank 0's model. Collective."""
        super().prepare(model, optimizer)
        process_group.start(self.group, next(model.parameters()).device)
        for parameter in model.parameters():
            dist.broadcast(parameter.data, 0)
        self._of_replica = Ranks(self.place.groups_of_replicas(), self.group.rank)
        self._of_part = Ranks(self.place.groups_of_parts(), self.group.rank)
        return model

    def _start_servers(self) -> None:
        """Start parameter servers between the copies, if asked for; `self._parameters` are this part's. Collective."""
        if self.options.between_copies == "servers" and self.place.num_replicas > 1:
            from strategies.between_copies import ServersOfPart  # here: it needs MPI

            self._servers = ServersOfPart(self.group, self.options, self.place.part, self._parameters)

    def _average_over_copies(self) -> None:
        """Replace the gradients of this part by their means over all copies of the model."""
        if self.place.num_replicas == 1:
            return
        if self._servers:
            self._servers.average([gradient(p) for p in self._parameters])
            return
        for bucket in buckets([gradient(p) for p in self._parameters]):
            torch._foreach_div_(bucket, self.place.num_replicas)
            self._sum(self._of_part, bucket)

    def _sum(self, ranks: Ranks, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over some ranks, in one message."""
        flat = torch.cat([each.flatten() for each in tensors])
        dist.all_reduce(flat, group=ranks.group)
        self.counters.add(*vars(ranks.volume_of_sum(flat.numel(), flat.element_size())).values())
        parts = flat.split_with_sizes([each.numel() for each in tensors])
        torch._foreach_copy_(list(tensors), [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])

    def _sum_over_parts(self, value: float) -> float:
        """Return the sum of a number over the ranks that hold this copy of the model."""
        total = torch.tensor([value], dtype=torch.float64)
        if self.place.size > 1:
            self._sum(self._of_replica, [total])
        return float(total)

    def close(self) -> None:
        """End the process groups. Collective."""
        super().close()
        if self._servers:
            self._servers.close()
        process_group.end()


def gradient(parameter: nn.Parameter) -> Tensor:
    """Return a parameter's gradient, which every backward pass sets."""
    assert parameter.grad is not None
    return parameter.grad


def sum_of_squares(tensors: Sequence[Tensor]) -> float:
    """Return the square of the L2 norm of all tensors together."""
    return sum(float(torch.linalg.vector_norm(each, dtype=torch.float64)) ** 2 for each in tensors)


def buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the tensors in order, as few lists as can be of at most BUCKET_ELEMENTS each, unless one is larger."""
    found: list[list[Tensor]] = []
    free = 0
    for tensor in tensors:
        if tensor.numel() > free:
            found.append([])
            free = BUCKET_ELEMENTS
        found[-1].append(tensor)
        free -= tensor.numel()
    return found
