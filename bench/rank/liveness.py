"""Heartbeats between ranks: a rank that stops answering must not leave the others waiting for ever."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from strategies.group import Group

BEAT_S = 1.0
MAX_MISSED_BEATS = 6
BEAT_BYTES = 16
LOOPBACK = "127.0.0.1"
RUNNING_SHARE = 0.5  # of a beat: a process that could run and ran for less was waiting for a core


class Heartbeat:
    """Sends a UDP datagram per second to the next rank (the last rank to rank 0) and listens to the previous one.

    After receiving from the previous rank once, and then nothing during MAX_MISSED_BEATS beats of its own, it calls
    `on_silence` with that rank and its host. It counts beats, not seconds, so that a pause of the whole machine is no
    rank's failure; and it counts none during which the previous rank, on this machine, only waited for a core. It uses
    datagrams because a rank may be stuck inside MPI; where a network drops them, nothing is
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
        own = (self._socket.getsockname()[1], self._beat_sent, _process_namespace(), os.getpid())
        told = group.broadcast(group.gather(own))
        following, self._previous = (group.rank + 1) % group.size, (group.rank - 1) % group.size
        self._next = (LOOPBACK if alone else hosts[following], told[following][0])
        self._host, (_, self._beat_expected, where, pid) = hosts[self._previous], told[self._previous]
        is_neighbour = where == _process_namespace() and pid != os.getpid()
        self._core_wait = CoreWait(Path(f"/proc/{pid}/task")) if is_neighbour else None
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
            elif monitored and not self._waits_for_core():
                missed += 1
                if missed > MAX_MISSED_BEATS:
                    monitored = False  # report once and keep sending
                    self._on_silence(self._previous, self._host)

    def _waits_for_core(self) -> bool:
        return self._core_wait is not None and self._core_wait.since_last_call()

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


class CoreWait:
    """Tells whether another process of this machine is ready to run, but is given no core (proc_pid_stat(5))."""

    def __init__(self, tasks: Path) -> None:
        """`tasks` is the process's folder of threads, /proc/PID/task."""
        self._tasks = tasks
        self._ran_s, self._looked_at = 0.0, time.monotonic()

    def since_last_call(self) -> bool:
        """Return whether a thread is ready to run now, and all threads ran for less than half of the time since then.

        False for a process that is stopped, that sleeps, or that has ended.
        """
        before, looked_before = self._ran_s, self._looked_at
        states, self._ran_s, self._looked_at = [], 0.0, time.monotonic()
        for task in self._tasks.glob("*"):
            with contextlib.suppress(OSError, ValueError, IndexError):  # the thread has ended
                states.append((task / "stat").read_text(errors="replace").rpartition(")")[2].split()[0])
                self._ran_s += int((task / "schedstat").read_text().split()[0]) / 1e9
        return "R" in states and self._ran_s - before < RUNNING_SHARE * (self._looked_at - looked_before)


def _process_namespace() -> tuple[str, str]:
    """Return what processes have in common that know each other by the same process ids."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")
