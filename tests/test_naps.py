"""Laws of waiting: a rank on which somebody computes naps, one that only waits polls as long as it is told."""

from __future__ import annotations

import threading

from mpi4py import MPI

from strategies.parameter_server.progress import Progress


class CountedEvent(threading.Event):
    """Counts who waited."""

    waits = 0

    def wait(self, timeout: float | None = None) -> bool:
        """As every event."""
        self.waits += 1
        return super().wait(timeout)


def naps_while_nothing_comes(poll_s: float, nobody_computes: bool, turns: int = 20) -> int:
    comm = MPI.COMM_SELF.Dup()
    progress = Progress(comm, poll_s, nobody_computes)
    progress.awaited = 1
    progress._wake = event = CountedEvent()
    asked = iter(range(turns + 1))
    progress.post(lambda: None)  # something happened last
    progress.run(until=lambda: next(asked) == turns)
    comm.Free()
    return event.waits


def test_who_only_waits_polls_as_long_as_it_is_told() -> None:
    assert naps_while_nothing_comes(poll_s=60.0, nobody_computes=True) == 0
    assert naps_while_nothing_comes(poll_s=0.0, nobody_computes=True) == 19


def test_where_somebody_computes_it_naps() -> None:
    assert naps_while_nothing_comes(poll_s=60.0, nobody_computes=False) == 19
