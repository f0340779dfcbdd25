"""Heartbeats between ranks: a rank that stops answering must not leave the others waiting for ever."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Callable

from strategies.group import Group

BEAT_S = 1.0
MAX_MISSED_BEATS = 6
BEAT_BYTES = 16
LOOPBACK = "127.0.0.1"


class Heartbeat:
    """Sends a UDP datagram per second to the next rank (the last rank to rank 0) and listens to the previous one.

    After receiving from the previous rank once, and then nothing during MAX_MISSED_BEATS beats of its own, it calls
    `on_silence` with that rank and its host. It counts beats, not seconds, so that a pause of the whole machine is no
    rank's failure. It uses datagrams because a rank may be stuck inside MPI; where a network drops them, nothing is
    monitored. The heartbeat has a thread of its own: a rank whose main thread hangs still beats until its deadline.
    """

    def __init__(self, group: Group, on_silence: Callable[[int, str], None]) -> None:
        """Exchange addresses and start the thread. Collective."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        hosts = group.broadcast(group.gather(socket.gethostname()))
        alone = len(set(hosts)) == 1
        self._socket.bind((LOOPBACK if alone else "", 0))  # nobody else can reach ranks of one machine
        self._socket.setblocking(False)
        self._beat_sent = secrets.token_bytes(BEAT_BYTES)  # only ranks know it: nobody else can beat for a stopped one
        told = group.broadcast(group.gather((self._socket.getsockname()[1], self._beat_sent)))
        following, self._previous = (group.rank + 1) % group.size, (group.rank - 1) % group.size
        self._next = (LOOPBACK if alone else hosts[following], told[following][0])
        self._host, self._beat_expected = hosts[self._previous], told[self._previous][1]
        self._on_silence = on_silence
        self._stopped = threading.Event()
        self._beat()  # every rank listens by now: one that stops from here on is detected
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # the host is unknown, or the socket already closed
            self._socket.sendto(self._beat_sent, self._next)

    def _run(self) -> None:
        monitored, missed = False, 0
        while not self._stopped.wait(BEAT_S):
            self._beat()
            if self._received():
                monitored, missed = True, 0
            elif monitored:
                missed += 1
                if missed > MAX_MISSED_BEATS:
                    monitored = False  # report once and keep sending
                    self._on_silence(self._previous, self._host)

    def _received(self) -> bool:
        received = False
        with contextlib.suppress(OSError):  # no more datagrams
            while True:
                received |= self._socket.recv(BEAT_BYTES + 1) == self._beat_expected
        return received

    def stop(self) -> None:
        """Stop the thread and close the socket."""
        self._stopped.set()
        self._thread.join()
        self._socket.close()
