"""Who waits for whom: bulk-synchronous (BSP), asynchronous (ASP), stale-synchronous (SSP) parallel training."""

from __future__ import annotations

from collections import Counter


class Clocks:
    """How often each worker has pushed one chunk, and who may have new weights for it.

    A worker's clock is the number of its pushes. It is answered once it is at most `staleness` ahead of the slowest
    (Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server", 2013): 0 is BSP,
    where all are answered together, infinity is ASP. As a worker pushes every chunk in every step, what
    holds for each chunk holds for the workers.
    """

    def __init__(self, num_workers: int, staleness: float) -> None:
        self._staleness = staleness
        self._pushed = [0] * num_workers
        self._answered = [0] * num_workers
        self._updates = 0
        self._seen = [0] * num_workers  # updates that were in the weights each worker was last given
        self.largest_lead = 0
        self.missed: Counter[int] = Counter()  # pushes by how many updates of others their gradient did not know

    def push(self, worker: int) -> list[int]:
        """Count a push; return the workers to be answered now, in order."""
        self._pushed[worker] += 1
        slowest = min(self._pushed)
        ahead = enumerate(zip(self._pushed, self._answered, strict=True))
        free = [w for w, (pushed, answered) in ahead if answered < pushed <= slowest + self._staleness]
        for w in free:
            self._answered[w] = self._pushed[w]
            self.largest_lead = max(self.largest_lead, self._pushed[w] - slowest)
        return free

    def updated(self, worker: int) -> None:
        """Count an update by one worker's gradient, and how many of others it had missed."""
        self.missed[self._updates - self._seen[worker]] += 1
        self._updates += 1

    def answered(self, worker: int) -> None:
        """Note that a worker is given the weights as they are."""
        self._seen[worker] = self._updates
