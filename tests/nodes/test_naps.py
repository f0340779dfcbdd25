"""Laws of moving messages: beside compute in naps, by who can only wait alone; what is posted gets done."""

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


class Turns:
    """Holds after so many looks."""

    def __init__(self, looks: int) -> None:
        self._left = looks

    def __call__(self) -> bool:
        """Count down."""
        self._left -= 1
        return self._left < 0


class CountedEvent(threading.Event):
    """Counts who waited."""

    waits = 0

    def wait(self, timeout: float | None = None) -> bool:
        """As every event."""
        self.waits += 1
        return super().wait(timeout)


def after_a_message(poll_s: float) -> Progress:
    """Has one message to take in, and awaits another that never comes."""
    comm = MPI.COMM_SELF.Dup()
    comm.Isend([np.zeros(1, np.uint8), MPI.BYTE], 0, 1).Wait()
    progress = Progress(comm, poll_s)
    progress.expect(0, 1, np.zeros(1, np.uint8), lambda: None)
    progress.awaited = 1
    return progress


@pytest.mark.parametrize(("poll_s", "naps"), [(60.0, 0), (0.0, 19)])
def test_who_only_waits_polls_as_long_as_it_is_told(poll_s: float, naps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    progress = after_a_message(poll_s)
    monkeypatch.setattr(time, "sleep", slept.append)
    progress.wait(until=Turns(20))
    assert len(slept) == naps


def test_beside_somebody_who_computes_it_naps() -> None:
    progress = after_a_message(poll_s=60.0)
    progress._wake = event = CountedEvent()
    progress.run(until=Turns(20))
    assert event.waits == 19


def test_what_is_posted_is_done_at_once_by_who_posts_it() -> None:
    progress, done_by = Progress(MPI.COMM_SELF), []
    progress.post(lambda: done_by.append(threading.current_thread()))
    assert done_by == [threading.current_thread()]


def test_what_is_posted_while_another_thread_moves_messages_is_done_there() -> None:
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


def test_receives_are_posted_for_what_came_first_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE_BYTES", 1)
    monkeypatch.setattr(module, "MOST_AHEAD", 2)
    comm = MPI.COMM_SELF.Dup()
    progress, came = Progress(comm), []
    for tag in range(5):
        progress.expect(0, tag, np.zeros(1, np.uint8), lambda tag=tag: came.append(tag))  # type: ignore[misc]
    for order in ([0, 1, 2, 3, 4], [2, 0, 4, 1, 3], [2, 0, 4, 1, 3], [4, 3, 2, 1, 0]):
        came.clear()
        for number, tag in enumerate(order, start=1):
            comm.Isend([np.zeros(1, np.uint8), MPI.BYTE], 0, tag).Wait()
            progress.wait(until=lambda number=number: len(came) == number)  # type: ignore[misc]
        assert came == order
        assert progress._posted_ahead == {(0, tag) for tag in order[:2]}
    progress.withdraw()


class SlowComm:
    """Nothing ever arrives, and whoever asks is told so when the test lets it be."""

    def __init__(self) -> None:
        self.asked, self.answer = threading.Event(), threading.Event()

    def Iprobe(self, *_: object) -> bool:
        """Not before `answer`."""
        self.asked.set()
        return not self.answer.wait(DEADLINE_S)


def wait_for(holds: Callable[[], bool]) -> bool:
    """Whether something comes to hold."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds() and time.monotonic() < deadline:
        time.sleep(1e-3)
    return holds()


def test_who_sleeps_without_end_is_woken_for_what_is_under_way_and_for_nothing_else() -> None:
    """That receives are posted ahead does not mean that anything can come."""
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
    progress.look()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    progress.withdraw()


def test_what_is_posted_after_the_other_thread_looked_is_seen_before_it_sleeps() -> None:
    """It finds nothing, and nothing can come; but while it asked MPI something was posted."""
    comm, done = SlowComm(), []
    progress = Progress(comm)
    thread = threading.Thread(target=progress.run, args=(lambda: bool(done),), daemon=True)
    thread.start()
    assert comm.asked.wait(DEADLINE_S)
    progress.post(lambda: done.append(True))
    comm.answer.set()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_who_was_kept_from_looking_sees_what_was_posted_meanwhile() -> None:
    """It wants to look while the main thread moves messages, and by then what it waits for has come about."""
    progress, done = Progress(MPI.COMM_SELF), []
    thread = threading.Thread(target=progress.run, args=(lambda: bool(done),), daemon=True)
    with progress._lock:
        thread.start()
        time.sleep(0.05)  # it stands before the lock
        done.append(True)
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
