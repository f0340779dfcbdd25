"""Which ranks hold one copy of the model together, and which ones hold the same part of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist

from strategies.allreduce import ring_volume
from strategies.volume import Volume


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
        started = [dist.new_group(ranks) for ranks in lists]
        own = [(group, ranks) for group, ranks in zip(started, lists, strict=True) if rank in ranks]
        self.group: dist.ProcessGroup | None = own[0][0] if own else None
        ranks = own[0][1] if own else [rank]
        self.index, self.size = ranks.index(rank), len(ranks)

    def volume_of_sum(self, num_elements: int, element_bytes: int) -> Volume:
        """Return what an allreduce among these ranks moves on this one."""
        return ring_volume(num_elements, element_bytes, self.index, self.size)
