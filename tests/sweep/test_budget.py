"""Laws of a sweep with a budget: what matters most runs first, nothing overruns, and what is missing is said."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from bench import records
from bench.config import BadInput
from bench.records import PlannedRun
from bench.sweep import folder, journal, remaining, run, stopping
from bench.sweep.file import Sweep, read_sweep
from bench.sweep.launch import Outcome
from bench.sweep.plan import plan, rounds
from bench.sweep.run import run_sweep
from tests.support.launches import instant, write_run
from tests.support.plans import QUIET, SWEEPS, make_sweep

Launch = Callable[[Sequence[PlannedRun], Path, Callable[[], float]], Outcome]


class Clock:
    """Time that passes only while a run runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (run, stopping, journal):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def launch(self, seconds: Callable[[PlannedRun], float]) -> Launch:
        def start(planned: Sequence[PlannedRun], scratch: Path, poll: Callable[[], float]) -> Outcome:
            for each in planned:
                self.now += seconds(each)
                write_run(each, scratch / "result", step_s=seconds(each) / each.config.total_steps / 2)
                poll()
            return Outcome(0, False, "")

        return start


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def slow_cells(sizes: Sequence[int], repeats: int = 3, **more: Any) -> Sweep:
    return make_sweep([{"strategy": "local", "batch_size": list(sizes)}], repeats).model_copy(update=more)


def test_all_repeats_of_a_stage_come_before_the_next_stage() -> None:
    late: dict[str, object] = {"strategy": "local", "batch_size": [3, 4], "stage": 2}
    sweep = make_sweep([late, {"strategy": "local", "batch_size": [1, 2]}], repeats=3)
    runs = [(r.config.batch_size > 2, r.repeat) for planned in plan(sweep, "x") for r in planned]
    assert runs == sorted(runs)
    assert len(runs) == 12


def test_a_block_may_repeat_its_cells_otherwise() -> None:
    often: dict[str, object] = {"strategy": "local", "batch_size": 3, "repeats": 4}
    sweep = make_sweep([often, {"strategy": "local", "batch_size": 1}, {**often, "batch_size": 5, "stage": 2}], 2)
    runs = [(r.config.batch_size, r.repeat) for planned in plan(sweep, "x") for r in planned]
    assert Counter(batch_size for batch_size, _ in runs) == {3: 4, 1: 2, 5: 4}
    assert [repeat for _, repeat in runs] == [0, 0, 1, 1, 2, 3, 0, 1, 2, 3]
    with pytest.raises(BadInput, match="runs are too many"):
        plan(make_sweep([{**often, "batch_size": [1, 2], "repeats": 60_000}]), "x")
    with pytest.raises(BadInput, match="grid block 1: repeats: "):
        plan(make_sweep([{**often, "repeats": 0}]), "x")


def test_a_plan_is_taken_repeat_by_repeat_or_stage_by_stage() -> None:
    late: dict[str, object] = {"strategy": "local", "batch_size": 3, "stage": 2}
    launches = plan(make_sweep([late, {"strategy": "local", "batch_size": 1}], repeats=3), "x")
    assert [len(found) for found in rounds(launches, whole_stages=True)] == [3, 3]
    assert [len(found) for found in rounds(launches, whole_stages=False)] == [1] * 6
    assert [planned for found in rounds(launches, whole_stages=True) for planned in found] == launches


def test_the_demo_compares_topologies_before_it_trains() -> None:
    demo = read_sweep(SWEEPS / "demo.yaml")
    runs = [planned for launch in plan(demo, "demo") for planned in launch]
    emulated = list(itertools.takewhile(lambda planned: planned.config.link, runs))
    assert not any(planned.config.link for planned in runs[len(emulated) :])
    launches = Counter(planned.config for planned in emulated)
    assert set(launches.values()) == {3}
    found = {(c.strategy, c.placement, c.num_servers > 1, c.world_size) for c in launches}
    assert found == {
        ("local", "dedicated", False, 1),
        *itertools.product(["ring_allreduce"], ["dedicated"], [False], [2, 4, 8]),
        *itertools.product(["parameter_server"], ["colocated"], [False], [2, 4, 8]),
        *itertools.product(["parameter_server"], ["dedicated"], [False], [2, 4, 8]),
        *itertools.product(["parameter_server"], ["dedicated"], [True], [4, 8]),  # of 2 nodes, 1 + 1 is both
    }


def test_a_run_that_would_end_after_the_budget_is_not_begun(clock: Clock, tmp_path: Path) -> None:
    sweep = slow_cells([1, 2], budget="45s")
    with (tmp_path / "log").open("w") as log:
        done = run_sweep(sweep, "x", tmp_path / "out", Console(file=log, width=300), clock.launch(lambda _: 10))
    assert len(done) == 4
    assert clock.now == 1040
    said = (tmp_path / "log").read_text()
    assert "2 of 6 planned runs are missing: 2 have not run (the budget of 45s ended before them)" in said
    assert "runs them in about 20 s and adds 1 launch to 2 cells with 2 so far" in said
    assert "steps took 50% of 40 s" in said
    assert remaining.of_folder(tmp_path / "out") in said.replace("\n", " ")
    assert len(run_sweep(sweep, "x", tmp_path / "out", QUIET, clock.launch(lambda _: 10))) == 2
    assert remaining.of_folder(tmp_path / "out") == ""


def test_what_still_fits_runs_although_an_earlier_launch_does_not(clock: Clock, tmp_path: Path) -> None:
    cells: list[dict[str, object]] = [
        {"strategy": "local", "batch_size": 8},
        {"strategy": "local", "batch_size": 1, "eager_limit_bytes": 2048},  # a launch of its own
    ]
    sweep = make_sweep(cells, repeats=3).model_copy(update={"budget": "57s"})
    done = run_sweep(sweep, "x", tmp_path, QUIET, clock.launch(lambda r: 2.0 * r.config.batch_size))
    assert Counter(r.config.batch_size for r in done) == {8: 3, 1: 3}
    assert clock.now == 1000 + 3 * 18
    (tmp_path / "more").mkdir()
    clock.now = 1000
    sweep = sweep.model_copy(update={"budget": "40s"})
    done = run_sweep(sweep, "x", tmp_path / "more", QUIET, clock.launch(lambda r: 2.0 * r.config.batch_size))
    assert Counter(r.config.batch_size for r in done) == {8: 2, 1: 3}


def test_a_call_always_gets_further_although_a_run_is_longer_than_the_budget(clock: Clock, tmp_path: Path) -> None:
    sweep = slow_cells([1], budget="5s")
    for repeat in range(3):
        (record,) = run_sweep(sweep, "x", tmp_path, QUIET, clock.launch(lambda _: 60))
        assert record.repeat == repeat
    assert run_sweep(sweep, "x", tmp_path, QUIET, clock.launch(lambda _: 60)) == []


def test_a_launch_ends_when_its_runs_are_slower_than_estimated(clock: Clock, tmp_path: Path) -> None:
    sweep = slow_cells([1, 2, 3], repeats=1, budget="25s")
    done = run_sweep(sweep, "x", tmp_path, QUIET, clock.launch(lambda _: 10))
    assert len(done) == 2
    assert len(records.read(tmp_path)) == 2


def test_what_this_machine_cannot_run_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise BadInput("cluster: this user may not make namespaces")

    monkeypatch.setattr(run.sandbox, "enter", refuse)
    cells: list[dict[str, object]] = [{"strategy": "local"}, {"strategy": "local", "link": "1mbit"}]
    run_sweep(make_sweep(cells, repeats=2), "x", tmp_path, QUIET, instant)
    assert remaining.of_folder(tmp_path) == ""


@pytest.mark.parametrize("ends_at", range(0, 11, 2))
def test_a_sweep_killed_at_any_moment_resumes(ends_at: int, tmp_path: Path) -> None:
    sweep = slow_cells([1, 2], repeats=2)
    moments = iter(range(ends_at))

    def killed(planned: Sequence[PlannedRun], scratch: Path, poll: Callable[[], float]) -> Outcome:
        for each in planned:
            for act in (lambda each=each: write_run(each, scratch / "result"), poll):
                if next(moments, None) is None:
                    raise KeyboardInterrupt
                act()
        return Outcome(0, False, "")

    if ends_at < 8:
        with pytest.raises(KeyboardInterrupt):
            run_sweep(sweep, "x", tmp_path, QUIET, killed)
        assert ends_at == 0 or "the sweep was interrupted" in remaining.of_folder(tmp_path)
    run_sweep(sweep, "x", tmp_path, QUIET, instant)
    found = records.read(tmp_path)
    assert len(found) == 4
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 4
    assert not (tmp_path / folder.SCRATCH).exists()
