"""Whether every rank still answers: one that is stopped or stuck must not leave the others waiting for ever."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from typing import Any

BEAT_S = 1.0
MOST_MISSED_BEATS = 6


class Heartbeat:
    """Every rank sends the next one an empty message a second, the last one rank 0, in a communicator of their own.

    A rank that has heard nothing for 6 beats of its own calls `silent` with the rank and the host of its neighbour.
    Beats are counted, not seconds: where the whole machine stood still, nobody is to blame. A rank whose
    main thread is stuck outside Python's lock still beats: only its deadline ends it.
    """

    def __init__(self, comm: Any, silent: Callable[[int, str], None]) -> None:
        """Collective."""
        self._comm = comm.Dup()
        self._next, self._previous = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        self._host = comm.sendrecv(platform.node(), dest=self._next, source=self._previous)
        self._silent = silent
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        missed = 0
        beat = self._comm.Irecv(bytearray(1), self._previous)
        while not self._stopped.wait(BEAT_S):
            self._comm.Isend(b"", self._next).Wait()  # so small that it never waits for its receiver
            missed += 1
            while beat.Test():
                missed = 0
                beat = self._comm.Irecv(bytearray(1), self._previous)
            if missed > MOST_MISSED_BEATS:
                self._silent(self._previous, self._host)
        beat.Cancel()
        beat.Wait()

    def stop(self) -> None:
        """Neither beat nor listen any more."""
        self._stopped.set()
        self._thread.join()
