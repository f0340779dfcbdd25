"""The one thread of a rank that talks to MPI: it takes in what arrives, waits for it asleep, and acts on it."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

# A waiting rank sleeps: a polling one would take its core from a rank that computes. The longest nap keeps a
# socket's buffer from running dry: 256 kB last 0.4 ms at 5 Gbit/s.
SHORTEST_NAP_S = 50e-6
LONGEST_NAP_S = 400e-6

Act = Callable[[], None]


class Progress:
    """What may arrive, what is under way, and what to do when it is there.

    Whoever runs it, a server's main thread or a worker's second one, is the only one to call MPI. Other threads
    hand over work with `post`. MPI moves messages only while somebody is inside it, so that without such a
    thread nothing would travel while a worker computes. It asks MPI whether anything has arrived: no receive is posted,
    tested and taken back for every chunk that might.

    While nobody on this rank computes, it polls for `poll_s` after something has happened, before it naps.
    """

    def __init__(self, comm: MPI.Intracomm, poll_s: float = 0.0, nobody_computes: bool = False) -> None:
        self._comm = comm
        self._poll_s = poll_s
        self.nobody_computes = nobody_computes
        self._expected: dict[tuple[int, int], tuple[np.ndarray, Act]] = {}
        self._requests: list[MPI.Request] = []
        self._acts: list[Act] = []
        self._posted: deque[Act] = deque()
        self._wake = threading.Event()
        self.awaited = 0  # messages that must still come; while there are none, it sleeps

    def post(self, act: Act) -> None:
        """Have the running thread do something soon; from any thread."""
        self._posted.append(act)
        self._wake.set()

    def expect(self, source: int, tag: int, buffer: np.ndarray, act: Act) -> None:
        """Receive every message with that tag from a rank into a buffer (bytes), and do something then."""
        self._expected[source, tag] = buffer, act

    def watch(self, request: MPI.Request, act: Act) -> None:
        """Do something once a started request has completed."""
        self._requests.append(request)
        self._acts.append(act)

    def run(self, until: Callable[[], bool]) -> None:
        """Move messages until something holds; nap where there is nothing to do, sleep while nothing can come."""
        nap_s, acted_at = SHORTEST_NAP_S, 0.0
        while not until():
            self._wake.clear()
            more_to_come = self.awaited or self._requests
            if self._turn():
                nap_s, acted_at = SHORTEST_NAP_S, time.perf_counter()
            elif more_to_come and self.nobody_computes and time.perf_counter() - acted_at < self._poll_s:
                os.sched_yield()
            else:
                self._wake.wait(nap_s if more_to_come else None)
                nap_s = min(2 * nap_s, LONGEST_NAP_S)

    def _turn(self) -> bool:
        """Do what was posted and what arrived or completed calls for; return whether there was anything."""
        acts = [self._posted.popleft() for _ in range(len(self._posted))]
        acts += self._completed()
        for act in acts:
            act()
        return self._take_in() or bool(acts)

    def _completed(self) -> list[Act]:
        """Forget the requests that have completed; return what they call for."""
        acts = []
        done = MPI.Request.Testsome(self._requests) if self._requests else None
        for index in sorted(done or (), reverse=True):
            acts.append(self._acts[index])
            self._requests[index], self._acts[index] = self._requests[-1], self._acts[-1]
            del self._requests[-1], self._acts[-1]
        return acts

    def _take_in(self) -> bool:
        """Receive what has arrived, and act on what is there as a whole; return whether anything had."""
        status, arrived = MPI.Status(), False
        while self._comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            arrived = True
            source, tag = status.Get_source(), status.Get_tag()
            buffer, act = self._expected[source, tag]
            request = self._comm.Irecv([buffer, MPI.BYTE], source, tag)
            if request.Test():
                act()
            else:
                self.watch(request, act)
        return arrived
