"""Laws of the second thread's progress: when it polls, sleeps and wakes; what is posted is executed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from mpi4py import MPI

from strategies.parameter_server import progress as module
from strategies.parameter_server.progress import LARGE_BYTES, Progress

DEADLINE_S = 30.0


class HoldsAfter:
    """A condition that holds after so many checks."""

    def __init__(self, checks: int) -> None:
        self._left = checks

    def __call__(self) -> bool:
        """Count down."""
        self._left -= 1
        return self._left < 0


class CountedEvent(threading.Event):
    """Counts calls of wait()."""

    waits = 0

    def wait(self, timeout: float | None = None) -> bool:
        """Wait as every event does."""
        self.waits += 1
        return super().wait(timeout)


def after_a_message(poll_s: float) -> Progress:
    """Return a Progress with one message to receive, which awaits another one that never arrives."""
    comm = MPI.COMM_SELF.Dup()
    comm.Isend([np.zeros(1, np.uint8), MPI.BYTE], 0, 1).Wait()
    progress = Progress(comm, poll_s)
    progress.expect(0, 1, np.zeros(1, np.uint8), lambda: None)
    progress.awaited = 1
    return progress


@pytest.mark.parametrize(("poll_s", "naps"), [(60.0, 0), (0.0, 19)])
def test_wait_polls_for_poll_s_before_it_sleeps(poll_s: float, naps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    progress = after_a_message(poll_s)
    monkeypatch.setattr(time, "sleep", slept.append)
    progress.wait(until=HoldsAfter(20))
    assert len(slept) == naps


def test_idle_time_is_that_without_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    sleep = time.sleep
    progress = after_a_message(0.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: (slept.append(seconds), sleep(seconds)))
    began = time.perf_counter()
    progress.wait(until=HoldsAfter(20))
    assert sum(slept) <= progress.idle_s <= time.perf_counter() - began


def test_run_sleeps_between_probes() -> None:
    progress = after_a_message(poll_s=60.0)
    progress._wake = event = CountedEvent()
    progress.run(until=HoldsAfter(20))
    assert event.waits == 19


def test_post_executes_at_once_on_an_idle_rank() -> None:
    progress, done_by = Progress(MPI.COMM_SELF), []
    progress.post(lambda: done_by.append(threading.current_thread()))
    assert done_by == [threading.current_thread()]


def test_post_executes_on_the_thread_that_moves_messages() -> None:
    progress, done_by = Progress(MPI.COMM_SELF), []
    waiting = threading.Event()

    def until() -> bool:
        waiting.set()
        return bool(done_by)

    thread = threading.Thread(target=progress.wait, args=(until,), daemon=True)
    thread.start()
    assert waiting.wait(DEADLINE_S)
    progress.post(lambda: done_by.append(threading.current_thread()))
    thread.join(DEADLINE_S)
    assert done_by == [thread]


def test_receives_are_posted_ahead_for_what_arrived_first_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE_BYTES", 1)
    monkeypatch.setattr(module, "MAX_AHEAD", 2)
    comm = MPI.COMM_SELF.Dup()
    progress, arrived = Progress(comm), []
    for tag in range(5):
        progress.expect(0, tag, np.zeros(1, np.uint8), lambda tag=tag: arrived.append(tag))  # type: ignore[misc]
    for order in ([0, 1, 2, 3, 4], [2, 0, 4, 1, 3], [2, 0, 4, 1, 3], [4, 3, 2, 1, 0]):
        arrived.clear()
        for number, tag in enumerate(order, start=1):
            comm.Isend([np.zeros(1, np.uint8), MPI.BYTE], 0, tag).Wait()
            progress.wait(until=lambda number=number: len(arrived) == number)  # type: ignore[misc]
        assert arrived == order
        assert progress._posted_ahead == {(0, tag) for tag in order[:2]}
    progress.cancel()


def test_a_watched_request_that_is_completed_otherwise_is_called_once_each_time_it_is_started() -> None:
    """A reply may arrive before its push was seen to be complete, and the next push begin."""
    comm, seen = MPI.COMM_SELF.Dup(), list[int]()
    progress = Progress(comm)
    push = comm.Ssend_init([np.zeros(1, np.uint8), MPI.BYTE], 0, 1)
    for step in range(3):
        progress.complete(push)
        assert seen == list(range(step))
        push.Start()
        progress.watch(push, lambda step=step: seen.append(step))  # type: ignore[misc]
        comm.Irecv([np.zeros(1, np.uint8), MPI.BYTE], 0, 1).Wait()
    progress.wait(until=lambda: len(seen) == 3)
    progress.complete(push)
    assert seen == [0, 1, 2]
    push.Free()


class SlowComm:
    """A communicator at which nothing arrives; Iprobe returns when the test sets `answer`."""

    def __init__(self) -> None:
        self.asked, self.answer = threading.Event(), threading.Event()

    def Iprobe(self, *_: object) -> bool:
        """Return False once `answer` is set."""
        self.asked.set()
        return not self.answer.wait(DEADLINE_S)


def wait_for(holds: Callable[[], bool]) -> bool:
    """Wait until a condition holds; return whether it does."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds() and time.monotonic() < deadline:
        time.sleep(1e-3)
    return holds()


def test_an_unlimited_sleep_ends_only_for_messages_in_flight() -> None:
    """Receives posted ahead alone do not mean that a message is in flight."""
    progress, done = Progress(MPI.COMM_SELF), []
    progress._wake = event = CountedEvent()
    progress.expect(0, 1, np.zeros(LARGE_BYTES, np.uint8), lambda: None)
    thread = threading.Thread(target=progress.run, args=(lambda: bool(done),), daemon=True)
    thread.start()
    assert wait_for(lambda: progress._asleep)
    progress.post(lambda: None)
    assert progress._asleep
    assert not event.is_set()
    progress.post(lambda: setattr(progress, "awaited", 1))
    assert wait_for(lambda: event.waits > 1)
    progress.awaited = 0
    assert wait_for(lambda: progress._asleep)
    progress.post(lambda: done.append(True))
    progress.wake()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    progress.cancel()


def test_a_post_during_a_probe_is_seen_before_the_thread_sleeps() -> None:
    """The probe finds nothing and nothing is in flight, but something was posted during the probe."""
    comm, done = SlowComm(), []
    progress = Progress(comm)
    thread = threading.Thread(target=progress.run, args=(lambda: bool(done),), daemon=True)
    thread.start()
    assert comm.asked.wait(DEADLINE_S)
    progress.post(lambda: done.append(True))
    comm.answer.set()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_a_thread_that_waited_for_the_lock_sees_what_was_posted() -> None:
    """The thread waits for the lock while the main thread moves messages; by then its condition holds."""
    progress, done = Progress(MPI.COMM_SELF), []
    thread = threading.Thread(target=progress.run, args=(lambda: bool(done),), daemon=True)
    with progress._lock:
        thread.start()
        time.sleep(0.05)  # it waits for the lock
        done.append(True)
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_a_request_that_was_never_started_is_complete_whatever_memory_it_lies_in() -> None:
    comm, buffer = MPI.COMM_SELF.Dup(), np.zeros(16, np.uint8)
    progress = Progress(comm)
    freed = [np.full(size, MPI.ERR_PROC_FAILED_PENDING, np.int32) for size in (500, 5000, 15000) for _ in range(200)]
    del freed  # MPI allocates its requests there
    requests = [comm.Ssend_init([buffer, MPI.BYTE], 0, 1) for _ in range(1000)]
    for request in requests:
        progress.complete(request)  # raises what MPI_Wait would find there
    assert all(request.Test() for request in requests)
    for request in requests:
        request.Free()
