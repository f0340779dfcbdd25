"""Who moves a rank's messages: takes in what arrives, waits for it asleep, and acts on it."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial

import numpy as np
from mpi4py import MPI

# A waiting rank sleeps: a polling one would take its core from a rank that computes. The longest nap keeps a
# socket's buffer from running dry: 256 kB last 0.4 ms at 5 Gbit/s.
SHORTEST_NAP_S = 50e-6
LONGEST_NAP_S = 400e-6
LARGE_BYTES = 256_000  # of a message whose second copy takes longer than posting a receive for it
MOST_AHEAD = 16  # of them from one source

Act = Callable[[], None]


class Progress:
    """What may arrive, what is under way, and what to do when it is there.

    MPI moves messages only while somebody is inside it. While a rank computes, that is a thread of its own (`run`);
    what its main thread has to send it sends itself (`post`), for waking the other one takes as long; and where it can
    only wait it takes over the whole (`wait`), so that nothing is handed from thread to thread. Whoever holds the lock
    is the only one of them to call MPI.

    It asks MPI whether anything has arrived: no receive is posted, tested and taken back for every chunk that might.
    Only large messages have one posted ahead, for MPI copies what it did not expect once more; of each source so many
    as came first last time.
    """

    def __init__(self, comm: MPI.Intracomm, poll_s: float = 0.0) -> None:
        self._comm = comm
        self._poll_s = poll_s
        self._expected: dict[tuple[int, int], tuple[np.ndarray, Act]] = {}
        self._next: dict[int, OrderedDict[int, MPI.Prequest]] = {}  # of each source: large messages, by tag
        self._posted_ahead: set[tuple[int, int]] = set()
        self._requests: list[MPI.Request] = []
        self._acts: list[Act] = []
        self._posted: deque[Act] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._asleep = False  # whether `run` looks again only when it is woken
        self.awaited = 0  # messages that call for something when they come; while there are none, `run` sleeps

    def post(self, act: Act) -> None:
        """Send something now; if the other thread is just inside MPI, have it do so next.

        Wake that one only for what is then under way: it would take Python's lock from this one, and this one could
        send no more before it had got it back.
        """
        self._posted.append(act)
        if not self._lock.acquire(blocking=False):
            self._wake.set()
            return
        try:
            self._do_posted()
            if self._asleep and self._can_move():
                self._asleep = False
                self._wake.set()
        finally:
            self._lock.release()

    def look(self) -> None:
        """Have `run` look whether what it runs until holds."""
        self._wake.set()

    def expect(self, source: int, tag: int, buffer: np.ndarray, act: Act) -> None:
        """Receive every message with that tag from a rank into a buffer (bytes), and do something then."""
        self._expected[source, tag] = buffer, act
        if buffer.nbytes >= LARGE_BYTES:
            receive = self._comm.Recv_init([buffer, MPI.BYTE], source, tag)
            assert isinstance(receive, MPI.Prequest)
            self._next.setdefault(source, OrderedDict())[tag] = receive
            self._post_ahead(source)

    def _post_ahead(self, source: int) -> None:
        """Be ready for the next large messages of a rank."""
        for tag in itertools.islice(self._next[source], MOST_AHEAD):
            if (source, tag) not in self._posted_ahead:
                self._receive_large(source, tag)

    def _receive_large(self, source: int, tag: int) -> None:
        self._posted_ahead.add((source, tag))
        receive = self._next[source][tag]
        receive.Start()
        self.watch(receive, partial(self._arrived, source, tag))

    def _arrived(self, source: int, tag: int) -> None:
        """Act on a message, which is not the next one any more."""
        _, act = self._expected[source, tag]
        act()
        if tag in self._next.get(source, ()):
            self._posted_ahead.discard((source, tag))
            self._next[source].move_to_end(tag)
            self._post_ahead(source)

    def withdraw(self) -> None:
        """Take back what was posted for messages that will not come."""
        for source, tag in self._posted_ahead:
            receive = self._next[source][tag]
            receive.Cancel()
            receive.Wait()
        for receives in self._next.values():
            for receive in receives.values():
                receive.Free()

    def watch(self, request: MPI.Request, act: Act) -> None:
        """Do something once a started request has completed."""
        self._requests.append(request)
        self._acts.append(act)

    def run(self, until: Callable[[], bool]) -> None:
        """Move messages until something holds, beside a thread that computes: in naps, asleep while nothing can come.

        It never polls, which would take the core from that thread.
        """
        nap_s = SHORTEST_NAP_S
        while True:
            self._wake.clear()
            with self._lock:  # whoever posts sees it asleep, or is seen before it falls asleep
                acted = self._turn()
                if until():
                    return
                self._asleep = not (acted or self._can_move())
            if acted:
                nap_s = SHORTEST_NAP_S
            else:
                self._wake.wait(None if self._asleep else nap_s)
                nap_s = min(2 * nap_s, LONGEST_NAP_S)

    def wait(self, until: Callable[[], bool]) -> None:
        """Move messages until something holds, while nobody on this rank computes.

        After something has happened it polls for `poll_s`, then it naps.
        """
        nap_s, acted_at = SHORTEST_NAP_S, 0.0
        with self._lock:
            while not until():
                if self._turn():
                    nap_s, acted_at = SHORTEST_NAP_S, time.perf_counter()
                elif time.perf_counter() - acted_at < self._poll_s:
                    os.sched_yield()
                else:
                    time.sleep(nap_s)
                    nap_s = min(2 * nap_s, LONGEST_NAP_S)

    def _can_move(self) -> bool:
        """Whether anything is under way: receives posted ahead alone are not."""
        return self.awaited > 0 or len(self._requests) > len(self._posted_ahead)

    def _turn(self) -> bool:
        """Do what was posted and what arrived or completed calls for; return whether there was anything."""
        acted = self._do_posted()
        acts = self._completed()
        for act in acts:
            act()
        return self._take_in() or acted or bool(acts)

    def _do_posted(self) -> bool:
        """Return whether anything was posted."""
        acts = [self._posted.popleft() for _ in range(len(self._posted))]
        for act in acts:
            act()
        return bool(acts)

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
            if tag in self._next.get(source, ()):  # one more than are posted ahead: it may take longer than they do
                self._receive_large(source, tag)
                continue
            buffer, _ = self._expected[source, tag]
            request = self._comm.Irecv([buffer, MPI.BYTE], source, tag)
            if request.Test():
                self._arrived(source, tag)
            else:
                self.watch(request, partial(self._arrived, source, tag))
        return arrived
