"""In which order a worker's chunks are pushed, and how many bytes are in flight."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from strategies.parameter_server.plan import Chunk


def sending_order(chunks: Sequence[Chunk], schedule: str, worker: int, num_servers: int) -> list[int]:
    """Return each chunk's place in the order in which ready chunks are sent.

    fifo is backward's order; priority is forward's, the reverse: the chunks that the next forward reads first overtake
    others that wait (Jayarajan et al., "Priority-based Parameter Propagation", 2019). Within a stripe, worker w
    begins with server w mod S, so that the workers do not all send to one server at once.
    """
    direction = -1 if schedule == "priority" else 1

    def key(chunk: Chunk) -> tuple[int, int]:
        return direction * chunk.stripe, (chunk.server - worker) % num_servers

    places = [0] * len(chunks)
    for place, chunk in enumerate(sorted(chunks, key=key)):
        places[chunk.index] = place
    return places


class Outbox:
    """Chunks that are ready to be sent; a window limits the elements in flight.

    A message handed to MPI can no longer be overtaken: without a window chunks are sent in order of readiness. Also,
    the worker whose connection has the largest TCP window then gets more than its share of a server's link: a chunk is
    complete only when the last worker's has arrived, so that the server's replies start late.
    """

    def __init__(
        self, chunks: Sequence[Chunk], places: Sequence[int], window: float, send: Callable[[Chunk], None]
    ) -> None:
        self._chunks = dict(zip(places, chunks, strict=True))
        self._places = places
        self._window = window
        self._send = send
        self._waiting: list[int] = []
        self._in_flight = 0

    def add(self, indices: Sequence[int]) -> None:
        """Send chunks as soon as the window allows."""
        for index in indices:
            heapq.heappush(self._waiting, self._places[index])
        self._fill()

    def arrived(self, chunk: Chunk) -> None:
        """Note that a chunk has reached its server."""
        self._in_flight -= chunk.size
        self._fill()

    def _fill(self) -> None:
        while self._waiting and (self._in_flight == 0 or self._in_flight < self._window):
            chunk = self._chunks[heapq.heappop(self._waiting)]
            self._in_flight += chunk.size
            self._send(chunk)
