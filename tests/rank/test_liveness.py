"""Laws of failing ranks: however a rank fails, the run ends and one line names the rank and the reason."""

from __future__ import annotations

import os
import queue
import re
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.config import RunConfig
from bench.rank import liveness
from bench.sweep import ends, launch
from tests.support.processes import no_rank_left


class Neighbours:
    """A rank of a group whose heartbeats live in this process."""

    def __init__(self, rank: int, size: int, addresses: list[object], all_there: threading.Barrier) -> None:
        self.rank = rank
        self.size = size
        self._addresses = addresses
        self._all_there = all_there

    def gather(self, value: object) -> list[object]:
        self._addresses[self.rank] = value
        self._all_there.wait()
        everyones = list(self._addresses)
        self._all_there.wait()
        return everyones

    def broadcast(self, value: object) -> object:
        return value  # what `gather` returns here is every rank's

    def barrier(self) -> None:
        self._all_there.wait()


def test_only_the_next_rank_reports_a_silent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "BEAT_S", 0.02)
    monkeypatch.setattr(liveness, "MAX_MISSED_BEATS", 50)  # beats of its own: a busy machine delays both sides
    size, silent_rank = 4, 2
    addresses, all_there, reported = [None] * size, threading.Barrier(size), queue.Queue[tuple[int, int]]()

    def beat(rank: int) -> liveness.Heartbeat:
        group = Neighbours(rank, size, addresses, all_there)
        return liveness.Heartbeat(group, lambda other, host: reported.put((rank, other)))

    with ThreadPoolExecutor(size) as pool:
        hearts = list(pool.map(beat, range(size)))
    assert reported.empty()
    with pytest.raises(queue.Empty):
        reported.get(timeout=1.0)  # while all beat
    beat_seen, listener = hearts[silent_rank]._beat_sent, hearts[silent_rank + 1]._socket.getsockname()
    assert listener[0] == "127.0.0.1"
    hearts[silent_rank].stop()
    detected = threading.Event()
    forger = threading.Thread(target=forge, args=(listener, beat_seen[:-1] + b"x", detected))
    forger.start()
    try:
        assert reported.get(timeout=30) == (silent_rank + 1, silent_rank)
    finally:
        detected.set()
    with pytest.raises(queue.Empty):
        reported.get(timeout=1.0)
    forger.join()
    for rank in set(range(size)) - {silent_rank}:
        hearts[rank].stop()


def forge(address: tuple[str, int], beat: bytes, detected: threading.Event) -> None:
    """Send datagrams that are no rank's beats until the silent rank is detected."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while not detected.wait(0.005):
            for datagram in (beat, b"psring", b"", beat * 100):
                sender.sendto(datagram, address)


def threads(folder: Path, *threads: tuple[str, float]) -> None:
    """Write a process's folder of threads: the state of each, and the seconds for which it has run."""
    for number, (state, ran_s) in enumerate(threads):
        (folder / str(number)).mkdir(exist_ok=True)
        (folder / str(number) / "stat").write_text(f"7 (a ) R (b)) {state} 1 2 3")
        (folder / str(number) / "schedstat").write_text(f"{int(ran_s * 1e9)} 123 4")


@pytest.mark.parametrize(
    ("then", "waits"),
    [
        ([("R", 5.1), ("S", 1.0)], True),
        ([("S", 5.1), ("R", 1.0)], True),
        ([("R", 5.9), ("S", 1.0)], False),  # it runs
        ([("T", 5.0), ("T", 1.0)], False),  # it is stopped
        ([("S", 5.0), ("D", 1.0)], False),  # it waits for something else
    ],
)
def test_a_process_that_is_given_no_core_is_not_silent(
    then: list[tuple[str, float]], waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.0, 1.0, 2.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    threads(tmp_path, ("R", 5.0), ("S", 1.0))
    core_wait = liveness.CoreWait(tmp_path)
    core_wait.since_last_call()
    threads(tmp_path, *then)
    assert core_wait.since_last_call() == waits


def test_a_process_that_has_ended_waits_for_no_core(tmp_path: Path) -> None:
    assert not liveness.CoreWait(tmp_path / "gone").since_last_call()


PROGRAM = """
import os, threading, time
from pathlib import Path
from bench import failures
from bench.rank import group
from bench.config import RunConfig
from bench.mpi import RankInfo
from bench.processes import die_with_parent
from mpi4py import MPI
from strategies.group import MPIGroup

rank_info = RankInfo.detect(os.environ)
config = RunConfig(strategy="parameter_server", num_workers=1, num_servers=1)
die_with_parent()
failures.redirect(Path({folder!r}), rank_info.rank)
with group.monitored(MPIGroup(MPI.COMM_WORLD), rank_info, lambda: config):
    if rank_info.rank == 1:
        threading.Thread(target=lambda: 1 / 0).start()
    time.sleep(60)
"""


@pytest.mark.launcher
def test_a_rank_whose_thread_fails_ends_the_run_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/sweep/test_faults.py does it for ranks that die or stop."""
    marker = f"PSRING_GONE_{os.getpid()}"
    monkeypatch.setenv(marker, "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (tmp_path / "program.py").write_text(PROGRAM.format(folder=str(tmp_path)))
    config = RunConfig(strategy="parameter_server", num_workers=1, num_servers=1)
    argv = [*launch.launcher_prefix(config), sys.executable, str(tmp_path / "program.py")]
    deadline = time.monotonic() + 50
    outcome = launch.run(argv, os.environ, tmp_path / "log", lambda: deadline)
    assert not outcome.timed_out
    status, reason = ends.diagnose(outcome, config, tmp_path)
    assert status == "failed"
    assert re.search(r"rank 1 \(server\) on \S+ failed: ZeroDivisionError", reason)
    assert "\n" not in reason
    assert no_rank_left(marker)
