"""Whether every rank still answers: one that is stopped must not leave the others waiting for ever."""

from __future__ import annotations

import contextlib
import platform
import socket
import threading
from collections.abc import Callable

from strategies.group import Group

BEAT_S = 1.0
MOST_MISSED_BEATS = 6
BEAT = b"psring"


class Heartbeat:
    """Every rank sends the next one a datagram a second, the last one rank 0.

    A rank that has heard its neighbour before, and then nothing for 6 beats of its own, calls `silent` with the
    neighbour's rank and host. Beats are counted, not seconds: where the whole machine stood still, nobody is to
    blame. Datagrams, for MPI is what a stuck rank may be stuck in; where none come through, nobody is watched.
    A rank whose main thread alone is stuck still beats: only its deadline ends it.
    """

    def __init__(self, group: Group, silent: Callable[[int, str], None]) -> None:
        """Collective."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("", 0))
        self._socket.setblocking(False)
        addresses = group.broadcast(group.gather((platform.node(), self._socket.getsockname()[1])))
        self._next = addresses[(group.rank + 1) % group.size]
        self._previous = (group.rank - 1) % group.size
        self._host = addresses[self._previous][0]
        self._silent = silent
        self._stopped = threading.Event()
        self._beat()  # everybody listens by now: whoever stops from here on is missed
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # no such host, or its socket is closed already
            self._socket.sendto(BEAT, self._next)

    def _run(self) -> None:
        watched, missed = False, 0
        while not self._stopped.wait(BEAT_S):
            self._beat()
            if self._heard():
                watched, missed = True, 0
            elif watched:
                missed += 1
                if missed > MOST_MISSED_BEATS:
                    watched = False  # accuse once, and go on beating
                    self._silent(self._previous, self._host)

    def _heard(self) -> bool:
        heard = False
        with contextlib.suppress(OSError):  # nothing more is there
            while True:
                heard |= self._socket.recv(len(BEAT)) == BEAT
        return heard

    def stop(self) -> None:
        """Neither beat nor listen any more."""
        self._stopped.set()
        self._thread.join()
        self._socket.close()
