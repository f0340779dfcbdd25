"""Runs that share ranks do not see each other: what one has built is gone when the next begins."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from bench.config import RunConfig
from bench.mpi import ALONE
from bench.rank import run
from bench.rank.build import Built
from bench.records import PlannedRun

KNOBS: dict[str, dict[str, Any]] = {"parameter_server": {"placement": "colocated"}}


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What a run sets for its libraries does not stay."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("strategy", ["local", "ring_allreduce", "mpi_ring", "ddp", "parameter_server"])
def test_nothing_of_a_run_is_alive_when_the_next_begins(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[weakref.ref[object]] = []
    alive: list[int] = []

    def build(*given: Any) -> Built:
        alive.append(sum(each() is not None for each in built))
        found = make(*given)
        built.extend([weakref.ref(found.strategy), weakref.ref(found.model)])
        return found

    make = run.build
    monkeypatch.setattr(run, "build", build)
    knobs = {"model": "gpt-nano", "block_size": 8, "batch_size": 1, "steps": 1, "warmup_steps": 1, "eval_batches": 0}
    config = RunConfig(strategy=strategy, data="synthetic", **knobs, **KNOBS.get(strategy, {}))
    run.run_all([PlannedRun(config=config, repeat=repeat) for repeat in range(3)], ALONE, lambda _: None)
    assert alive == [0, 0, 0]
