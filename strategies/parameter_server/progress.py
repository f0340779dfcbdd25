"""Progress of a rank's messages: receive what arrives, sleep while nothing does, call what each message is for."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial

import numpy as np
from mpi4py import MPI

from strategies.parameter_server.plan import wait_all

# A waiting rank sleeps: a polling one would take its core from a rank that computes. The longest sleep is short enough
# that a socket's buffer does not run empty: 256 kB last 0.4 ms at 5 Gbit/s.
SHORTEST_NAP_S = 50e-6
LONGEST_NAP_S = 400e-6
LARGE_BYTES = 256_000  # from this size on, copying an unexpected message costs more than posting a receive
MAX_AHEAD = 16  # receives of large messages posted ahead per source

Callback = Callable[[], None]


class Progress:
    """Which messages may arrive, which requests are in flight, and the callback of each.

    MPI moves messages only inside its own calls. While the main thread computes, a second thread makes these calls
    (`run`). The main thread sends by itself (`post`), because waking the other thread takes as long, and while it can
    only wait it makes all calls (`wait`), so that no message is handed from thread to thread. A lock lets one thread
    at a time call MPI.

    Arrivals are found by probing: no receive is posted, tested and cancelled for every chunk that might come. Only
    large messages have receives posted ahead, because MPI copies an unexpected message once more: per source, those
    that arrived first the last time.
    """

    def __init__(self, comm: MPI.Intracomm, poll_s: float = 0.0) -> None:
        self._comm = comm
        self._poll_s = poll_s
        self._expected: dict[tuple[int, int], tuple[np.ndarray, Callback, bool]] = {}  # by source and tag
        self._next: dict[int, OrderedDict[int, MPI.Prequest]] = {}  # large messages of each source, by tag
        self._posted_ahead: set[tuple[int, int]] = set()
        self._status = MPI.Status()  # of the last probe
        self._requests: list[MPI.Request] = []
        self._callbacks: list[Callback] = []  # one per request
        self._posted: deque[Callback] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._asleep = False  # whether `run` sleeps until it is woken
        self.idle_s = 0.0  # of `wait`: seconds in which no message had arrived or left
        self.found_at = 0.0  # when the message whose callback is called was first seen, seconds of perf_counter
        self.awaited = 0  # messages that will come and call for action; while there are none, `run` sleeps

    def post(self, send: Callback) -> None:
        """Send something now; if the other thread is inside MPI, let it do so next.

        The other thread is woken only if something is then in flight: it contends for the GIL and delays the next send.
        """
        self._posted.append(send)
        if not self._lock.acquire(blocking=False):
            self._wake.set()
            return
        try:
            self._call_posted()
            if self._asleep and self._can_move():
                self._asleep = False
                self._wake.set()
        finally:
            self._lock.release()

    def wake(self) -> None:
        """Let `run` re-check its stop condition."""
        self._wake.set()

    def expect(self, source: int, tag: int, buffer: np.ndarray, arrived: Callback, before_later: bool = False) -> None:
        """Receive every message with that tag from a rank into a buffer (bytes), and call `arrived` each time.

        `before_later`: before the callback of any message that the rank sent after it.
        """
        self._expected[source, tag] = buffer, arrived, before_later
        if buffer.nbytes >= LARGE_BYTES:
            receive = self._comm.Recv_init([buffer, MPI.BYTE], source, tag)
            assert isinstance(receive, MPI.Prequest)
            self._next.setdefault(source, OrderedDict())[tag] = receive
            self._post_ahead(source)

    def _post_ahead(self, source: int) -> None:
        """Post receives for the large messages that a rank will send next."""
        for tag in itertools.islice(self._next[source], MAX_AHEAD):
            if (source, tag) not in self._posted_ahead:
                self._receive_large(source, tag)

    def _receive_large(self, source: int, tag: int, found_at: float | None = None) -> None:
        self._posted_ahead.add((source, tag))
        receive = self._next[source][tag]
        receive.Start()
        self.watch(receive, partial(self._arrived, source, tag, found_at))

    def _arrived(self, source: int, tag: int, found_at: float | None) -> None:
        """Call a message's callback; a large message is then the last that its source will send.

        `found_at` is None where a receive was posted ahead, so that nobody saw the message begin.
        """
        self.found_at = found_at or time.perf_counter()
        _, callback, _ = self._expected[source, tag]
        callback()
        if tag in self._next.get(source, ()):
            self._posted_ahead.discard((source, tag))
            self._next[source].move_to_end(tag)
            self._post_ahead(source)

    def cancel(self) -> None:
        """Cancel the receives that are posted ahead, and free all receives."""
        for source, tag in self._posted_ahead:
            receive = self._next[source][tag]
            receive.Cancel()
            receive.Wait()
        for receives in self._next.values():
            for receive in receives.values():
                receive.Free()

    def watch(self, request: MPI.Request, completed: Callback) -> None:
        """Call `completed` once a started request is complete."""
        self._requests.append(request)
        self._callbacks.append(completed)

    def complete(self, request: MPI.Request) -> None:
        """Wait for a request; call its callback if it is watched and was not yet seen to be complete."""
        wait_all([request])
        for index, watched in enumerate(self._requests):
            if watched is request:
                self._unwatch(index)()
                return

    def _unwatch(self, index: int) -> Callback:
        """Drop a request, in whose place the last one comes; return its callback."""
        callback = self._callbacks[index]
        self._requests[index], self._callbacks[index] = self._requests[-1], self._callbacks[-1]
        del self._requests[-1], self._callbacks[-1]
        return callback

    def run(self, until: Callable[[], bool]) -> None:
        """Move messages until a condition holds, beside a thread that computes.

        It sleeps between probes, and until woken while nothing can arrive. It never polls, which would take the core
        from that thread.
        """
        nap_s = SHORTEST_NAP_S
        while True:
            self._wake.clear()
            with self._lock:  # `post` either sees `_asleep`, or is seen here before this thread sleeps
                acted = self._advance()
                if until():
                    return
                self._asleep = not (acted or self._can_move())
            if acted:
                nap_s = SHORTEST_NAP_S
            else:
                self._wake.wait(None if self._asleep else nap_s)
                nap_s = min(2 * nap_s, LONGEST_NAP_S)

    def wait(self, until: Callable[[], bool]) -> None:
        """Move messages until a condition holds, while no thread of this rank computes.

        It polls for `poll_s` after the last message, then it sleeps between probes.
        """
        nap_s, acted_at = SHORTEST_NAP_S, 0.0
        with self._lock:
            while not until():
                began = time.perf_counter()
                if self._advance():
                    nap_s, acted_at = SHORTEST_NAP_S, time.perf_counter()
                    continue
                if began - acted_at >= self._poll_s:
                    time.sleep(nap_s)
                    nap_s = min(2 * nap_s, LONGEST_NAP_S)
                self.idle_s += time.perf_counter() - began

    def _can_move(self) -> bool:
        """Whether anything is in flight; receives posted ahead alone do not count."""
        return self.awaited > 0 or len(self._requests) > len(self._posted_ahead)

    def _advance(self) -> bool:
        """Call what was posted and the callbacks of what arrived or completed; return whether there were any."""
        acted = self._call_posted()
        callbacks = self._completed()
        arrived = self._receive_arrived()  # first, for a message sent before a completed one has arrived by now
        for callback in callbacks:
            callback()
        return arrived or acted or bool(callbacks)

    def _call_posted(self) -> bool:
        """Call what was posted; return whether there was anything."""
        if not self._posted:
            return False
        callbacks = [self._posted.popleft() for _ in range(len(self._posted))]
        for callback in callbacks:
            callback()
        return True

    def _completed(self) -> list[Callback]:
        """Drop the requests that are complete; return their callbacks."""
        done = MPI.Request.Testsome(self._requests) if self._requests else None
        return [self._unwatch(index) for index in sorted(done or (), reverse=True)]

    def _receive_arrived(self) -> bool:
        """Receive what has arrived, and call the callbacks of what is complete; return whether anything had."""
        status, arrived = self._status, False
        while self._comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            arrived, found_at = True, time.perf_counter()
            source, tag = status.Get_source(), status.Get_tag()
            if tag in self._next.get(source, ()):  # beyond those posted ahead: it may be incomplete for longer
                self._receive_large(source, tag, found_at)
                continue
            buffer, _, before_later = self._expected[source, tag]
            request = self._comm.Irecv([buffer, MPI.BYTE], source, tag)
            if before_later:
                request.Wait()
            if request.Test():
                self._arrived(source, tag, found_at)
            else:
                self.watch(request, partial(self._arrived, source, tag, found_at))
        return arrived
