"""Which workers wait: bulk-synchronous (BSP), asynchronous (ASP), stale-synchronous (SSP) parallel training."""

from __future__ import annotations

from collections import Counter


class Clocks:
    """The clock of each worker for one chunk: the number of its pushes; decides which workers get new weights.

    A worker is replied to once its clock is at most `staleness` ahead of the slowest (Ho et al., "More Effective
    Distributed ML via a Stale Synchronous Parallel Parameter Server", 2013): 0 is BSP, where all get their reply
    together, infinity is ASP. A worker pushes every chunk in every step, so a bound per chunk bounds the workers.
    """

    def __init__(self, num_workers: int, staleness: float) -> None:
        self._staleness = staleness
        self._pushed = [0] * num_workers
        self._replied = [0] * num_workers
        self._updates = 0
        self._seen = [0] * num_workers  # updates that were in the weights each worker was last given
        self.largest_lead = 0
        self.missed: Counter[int] = Counter()  # pushes by how many updates of others their gradient did not know

    def push(self, worker: int) -> list[int]:
        """Count a push; return the workers to reply to now, in order."""
        self._pushed[worker] += 1
        slowest = min(self._pushed)
        ahead = enumerate(zip(self._pushed, self._replied, strict=True))
        released = [w for w, (pushed, replied) in ahead if replied < pushed <= slowest + self._staleness]
        for w in released:
            self._replied[w] = self._pushed[w]
            self.largest_lead = max(self.largest_lead, self._pushed[w] - slowest)
        return released

    def updated(self, worker: int) -> None:
        """Count an update by one worker's gradient, and the updates by others since its last reply."""
        self.missed[self._updates - self._seen[worker]] += 1
        self._updates += 1

    def replied(self, worker: int) -> None:
        """Note that a worker is sent the current weights."""
        self._seen[worker] = self._updates
