"""Laws of unequal numbers of steps: a rank is ended only in a step that a closed rank does not take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from mpi4py import MPI

from strategies import join, uneven
from strategies.catalogue import CATALOGUE
from strategies.group import SingleGroup
from strategies.independent import Independent
from strategies.options import Options

LOOKS = 5  # of the thread, which a test waits for


class TwoRanks:
    """The communicator of rank 1 of 2; rank 0 has closed once it has `told` its steps."""

    rank, size = 1, 2

    def __init__(self) -> None:
        self.told: list[int] = []
        self.sent: list[int] = []
        self.looks = 0

    def Dup(self) -> TwoRanks:
        return self

    def iprobe(self, source: int, tag: int, status: Any) -> bool:
        self.looks += 1
        status.source = 0
        return bool(self.told)

    def recv(self, _: object, source: int, tag: int) -> int:
        return self.told.pop()

    def isend(self, steps: int, rank: int, tag: int) -> None:
        self.sent.append(steps)

    def look(self) -> None:
        """Wait until the thread has looked a few more times."""
        seen, deadline = self.looks, time.monotonic() + 30
        while self.looks < seen + LOOKS and time.monotonic() < deadline:
            time.sleep(0.001)


class Script:
    """Rank 1's script: a strategy and its model, watched."""

    def __init__(self, name: str) -> None:
        self.comm, self.model = TwoRanks(), torch.nn.Linear(2, 1)
        self.strategy = Independent(SingleGroup(), Options())
        uneven.watch(self.strategy, self.comm, CATALOGUE[name])  # type: ignore[arg-type]
        self.strategy.prepare(self.model, torch.optim.SGD(self.model.parameters(), lr=0.1))

    def passes(self) -> None:
        self.model(torch.ones(2)).sum().backward()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.passes()
            self.strategy.synchronize()
            self.strategy.step()


@pytest.fixture
def reasons(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(uneven, "POLL_S", 0.005)
    monkeypatch.setattr(MPI, "Query_thread", lambda: MPI.THREAD_MULTIPLE)
    monkeypatch.setattr(join, "abort", lambda _, reason: found.append(reason))
    return found


@pytest.fixture
def script(reasons: list[str]) -> Iterator[Callable[[str], Script]]:
    made: list[Script] = []
    yield lambda name: made.append(Script(name)) or made[-1]  # type: ignore[func-returns-value]
    for each in made:
        each.strategy.close()  # ends the thread


def test_a_step_that_a_closed_rank_does_not_take_ends_all(script: Callable[[str], Script], reasons: list[str]) -> None:
    rank = script("mpi_ring")
    rank.train(3)
    rank.comm.told.append(3)
    rank.comm.look()
    assert reasons == []  # this rank may be done, too
    with torch.no_grad():
        rank.model(torch.ones(2))  # and evaluate
    rank.comm.look()
    assert reasons == []
    rank.passes()
    rank.comm.look()
    assert reasons[0].startswith("rank 0 has closed after 3 steps, and rank 1 takes a further one")


def test_a_further_step_that_waits_for_nobody_ends_all_too(script: Callable[[str], Script], reasons: list[str]) -> None:
    rank = script("zero")  # whose next forward waits, or close()
    rank.train(4)
    rank.comm.told.append(3)
    rank.comm.look()
    assert "closed after 3 steps" in reasons[0]


def test_a_rank_may_be_slower_than_one_that_has_closed(script: Callable[[str], Script], reasons: list[str]) -> None:
    rank = script("mpi_ring")
    rank.train(2)
    rank.comm.told.append(3)
    rank.passes()
    rank.comm.look()
    assert reasons == []


def test_a_forward_that_gathers_weights_is_part_of_the_step(
    script: Callable[[str], Script], reasons: list[str]
) -> None:
    rank = script("fsdp")
    rank.comm.told.append(0)
    rank.model(torch.ones(2))
    rank.comm.look()
    assert "rank 0 has closed after 0 steps" in reasons[0]


def test_closing_tells_the_others_how_many_steps_it_took(script: Callable[[str], Script]) -> None:
    rank = script("ddp")
    rank.train(4)
    rank.strategy.close()
    assert rank.comm.sent == [4]


@pytest.mark.parametrize("name", ["independent", "parameter_server", "local"])
def test_workers_that_do_not_need_each_other_are_not_watched(name: str, script: Callable[[str], Script]) -> None:
    rank = script(name)
    rank.train(1)
    assert vars(rank.strategy).keys().isdisjoint({"step", "close"})
