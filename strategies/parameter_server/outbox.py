"""In which order a worker's chunks leave, and how many at a time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from strategies.parameter_server.plan import Chunk


def sending_order(chunks: Sequence[Chunk], schedule: str, worker: int, num_servers: int) -> list[int]:
    """Return each chunk's place in the order in which ready chunks leave.

    fifo is backward's order; priority is forward's, the other way round: what the next step needs first overtakes
    what still waits (Jayarajan et al., "Priority-based Parameter Propagation", 2019). Within a stripe, worker w
    begins with server w mod S, so that the workers do not all fall on one server.
    """
    direction = -1 if schedule == "priority" else 1

    def key(chunk: Chunk) -> tuple[int, int]:
        return direction * chunk.stripe, (chunk.server - worker) % num_servers

    places = [0] * len(chunks)
    for place, chunk in enumerate(sorted(chunks, key=key)):
        places[chunk.index] = place
    return places


class Outbox:
    """Chunks that are ready to leave; with a window, at most so many bytes are on their way.

    A message that MPI has taken cannot be overtaken any more: without a window the order is that of readiness. And
    without one, the worker whose connection has the largest TCP window gets more than its share of a server's link: as
    a chunk is complete only when the last worker's is there, the server's answers then start late.
    """

    def __init__(
        self, chunks: Sequence[Chunk], places: Sequence[int], window: float, send: Callable[[Chunk], None]
    ) -> None:
        self._chunks = dict(zip(places, chunks, strict=True))
        self._places = places
        self._window = window
        self._send = send
        self._waiting: list[int] = []
        self._under_way = 0

    def add(self, indices: Sequence[int]) -> None:
        """Send chunks as soon as the window lets them pass."""
        for index in indices:
            heapq.heappush(self._waiting, self._places[index])
        self._fill()

    def arrived(self, chunk: Chunk) -> None:
        """Note that a chunk has reached its server."""
        self._under_way -= chunk.size
        self._fill()

    def _fill(self) -> None:
        while self._waiting and (self._under_way == 0 or self._under_way < self._window):
            chunk = self._chunks[heapq.heappop(self._waiting)]
            self._under_way += chunk.size
            self._send(chunk)
