"""Which workers wait: bulk-synchronous (BSP), asynchronous (ASP), stale-synchronous (SSP) parallel training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass
class Staleness:
    """How stale gradients have been on one server.

    `missed_updates`: how many updates used a gradient computed without so many updates by other workers.
    `largest_lead`: the most steps by which a worker that was given weights was ahead of the slowest.
    """

    missed_updates: Counter[int] = field(default_factory=Counter)
    largest_lead: int = 0


class Clocks:
    """The clock of each worker for one chunk: the number of its pushes; decides which workers get new weights.

    A worker is replied to once its clock is at most `staleness` ahead of the slowest (Ho et al., "More Effective
    Distributed ML via a Stale Synchronous Parallel Parameter Server", 2013): 0 is BSP, where all get their reply
    together, infinity is ASP. A worker pushes every chunk in every step, so a bound per chunk bounds the workers.
    """

    def __init__(self, num_workers: int, staleness: float, found: Staleness) -> None:
        self._staleness = staleness
        self._found = found
        self._pushed = [0] * num_workers
        self._replied = [0] * num_workers
        self._updates = 0
        self._seen = [0] * num_workers  # updates that were in the weights each worker was last given

    def push(self, worker: int) -> list[int]:
        """Count a push; return the workers to reply to now, in order."""
        self._pushed[worker] += 1
        slowest = min(self._pushed)
        ahead = enumerate(zip(self._pushed, self._replied, strict=True))
        released = [w for w, (pushed, replied) in ahead if replied < pushed <= slowest + self._staleness]
        for w in released:
            self._replied[w] = self._pushed[w]
            self._found.largest_lead = max(self._found.largest_lead, self._pushed[w] - slowest)
        return released

    def missing(self, closed: Collection[int]) -> tuple[int, int] | None:
        """Return a worker that waits for one that has closed, and that one; None if nobody waits in vain."""
        for done in closed:
            for worker, (pushed, replied) in enumerate(zip(self._pushed, self._replied, strict=True)):
                if replied < pushed and pushed > self._pushed[done] + self._staleness:
                    return worker, done
        return None

    def updated(self, worker: int) -> None:
        """Count an update by one worker's gradient, and the updates by others since its last reply."""
        self._found.missed_updates[self._updates - self._seen[worker]] += 1
        self._updates += 1

    def replied(self, worker: int) -> None:
        """Note that a worker is sent the current weights."""
        self._seen[worker] = self._updates
