"""The L2 norm of a gradient that lies on several servers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from strategies.parameter_server.plan import NORM_TAG, Roles, message, wait_all
from strategies.parameter_server.progress import Progress
from strategies.volume import Volume


class NormExchange:
    """Servers send their squared norms to the first, which adds them in rank order and sends every rank the norm.

    No call blocks: the same thread may have a worker's gradients to push meanwhile.
    """

    def __init__(
        self, comm: MPI.Intracomm, roles: Roles, progress: Progress, counters: Volume,
        known: Callable[[float], None],
    ) -> None:  # fmt: skip
        self._comm = comm
        self._progress = progress
        self._counters = counters
        self._known = known
        self._first, *self._others = roles.servers
        self._receivers = sorted({*roles.servers, *roles.workers} - {self._first})
        self._squares = np.zeros(len(roles.servers))
        self._awaited = len(self._others)
        self._sending: list[MPI.Request] = []
        if comm.rank != self._first:
            self._expect(0, self._first, lambda: self._known(float(self._squares[0])))
        else:
            for place, rank in enumerate(self._others, start=1):
                self._expect(place, rank, self._square_arrived)

    def exchange(self, square: float) -> None:
        """Contribute this server's squared norm; `known` is called with the norm once all servers have."""
        self._squares[0] = square
        if self._comm.rank != self._first:
            self._send([self._first])
        else:
            self._square_arrived()

    def _square_arrived(self) -> None:
        """Add up once this server's own square and those of all others are here, in whatever order they arrived."""
        self._awaited -= 1
        if self._awaited < 0:
            self._awaited = len(self._others)
            self._send_norm()

    def _send_norm(self) -> None:
        norm = math.sqrt(sum(self._squares.tolist()))
        self._squares[0] = norm
        self._send(self._receivers)
        self._known(norm)

    def _send(self, ranks: list[int]) -> None:
        self.finish()
        value = self._squares[:1].copy()
        self._sending = [self._comm.Isend(message(value.view(np.uint8)), rank, NORM_TAG) for rank in ranks]
        self._counters.add(sent=len(ranks) * value.nbytes, messages_sent=len(ranks))

    def _expect(self, place: int, rank: int, act: Callable[[], None]) -> None:
        value = self._squares[place : place + 1]

        def arrived() -> None:
            self._counters.add(received=value.nbytes, messages_received=1)
            act()

        self._progress.expect(rank, NORM_TAG, value.view(np.uint8), arrived)

    def finish(self) -> None:
        """Complete the last sends."""
        wait_all(self._sending)
