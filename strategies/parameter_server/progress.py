"""The one thread of a rank that talks to MPI: it starts messages, waits for them asleep, and acts on them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from mpi4py import MPI

# A waiting rank sleeps: a spinning one would take its core from a rank that computes. The longest nap keeps a
# socket's buffer from running dry: 256 kB last 0.4 ms at 5 Gbit/s.
SHORTEST_NAP_S = 50e-6
LONGEST_NAP_S = 400e-6

Act = Callable[[], None]


class Progress:
    """Requests under way, and what to do when each of them completes.

    Whoever runs it, a server's main thread or a worker's second one, is the only one to call MPI. Other threads
    hand over work with `post`. MPI moves messages only while somebody is inside it, so that without such a
    thread nothing would travel while a worker computes.
    """

    def __init__(self) -> None:
        self._requests: list[MPI.Request] = []
        self._acts: list[Act] = []
        self._posted: deque[Act] = deque()
        self._wake = threading.Event()

    def post(self, act: Act) -> None:
        """Have the running thread do something soon; from any thread."""
        self._posted.append(act)
        self._wake.set()

    def watch(self, request: MPI.Request, act: Act) -> None:
        """Do something once a started request has completed."""
        self._requests.append(request)
        self._acts.append(act)

    def run(self, until: Callable[[], bool]) -> None:
        """Move messages until something holds; with nothing under way, sleep until something is posted."""
        nap_s = SHORTEST_NAP_S
        while not until():
            self._wake.clear()
            if self._turn():
                nap_s = SHORTEST_NAP_S
            else:
                self._wake.wait(nap_s if self._requests else None)
                nap_s = min(2 * nap_s, LONGEST_NAP_S)

    def _turn(self) -> bool:
        """Do what was posted and what completed requests call for; return whether there was anything."""
        acts = [self._posted.popleft() for _ in range(len(self._posted))]
        completed = MPI.Request.Testsome(self._requests) if self._requests else None
        for index in sorted(completed or (), reverse=True):
            acts.append(self._acts[index])
            self._requests[index], self._acts[index] = self._requests[-1], self._acts[-1]
            del self._requests[-1], self._acts[-1]
        for act in acts:
            act()
        return bool(acts)
