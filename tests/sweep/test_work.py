"""Laws of measure_s: cells with equal compute take equally many steps, as many as one worker does in that time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import devices
from bench.config import BadInput, RunConfig
from bench.records import PlannedRun
from bench.sweep import folder, work
from bench.sweep.file import Sweep, read_sweep
from bench.sweep.launch import Outcome
from bench.sweep.run import run_sweep
from tests.support.launches import failing_at, instant, write_run
from tests.support.plans import QUIET, TINY

SLEEP = {"compute": "emulated", "emulated_forward_s": 0.1, "emulated_backward_s": 0.3}


def make_sweep(grid: list[dict[str, Any]], **more: Any) -> Sweep:
    return Sweep.model_validate({"defaults": {**TINY, "eval_batches": 0}, "grid": grid, **more})


def steps_of(sweep: Sweep) -> list[int]:
    return [config.steps for config in sweep.runs("x")]


def launch_at(step_s: Callable[[RunConfig], float]) -> Callable[..., Outcome]:
    """Launches whose steps take that long."""

    def launch(planned: Sequence[PlannedRun], scratch: Path, poll: Callable[[], float]) -> Outcome:
        for run in planned:
            write_run(run, scratch / "result", step_s=step_s(run.config))
            poll()
        return Outcome(0, False, "")

    return launch


def test_every_strategy_takes_the_steps_of_one_worker() -> None:
    cells: list[dict[str, Any]] = [
        {"strategy": "local"},
        {"strategy": "parameter_server", "num_workers": [1, 3], "link": "10mbit"},
        {"strategy": "ring_allreduce", "num_workers": 8, "speed_factor": "0=0.5"},
    ]
    assert set(steps_of(make_sweep([{**cell, **SLEEP, "measure_s": 4} for cell in cells]))) == {10}


def test_real_steps_come_from_a_probe_and_a_resumed_sweep_takes_as_many(tmp_path: Path) -> None:
    sweep = make_sweep([{"strategy": ["local", "parameter_server"], "batch_size": [1, 2], "measure_s": 3}])
    probes: list[PlannedRun] = []

    def at(step_s: float) -> Callable[..., Outcome]:
        launch = launch_at(lambda config: step_s * config.batch_size)

        def counted(planned: Sequence[PlannedRun], *rest: Any) -> Outcome:
            probes.extend(run for run in planned if run.config == work.probe(run.config))
            return launch(planned, *rest)

        return counted

    done = run_sweep(sweep, "x", tmp_path, QUIET, at(0.1))
    assert {(r.config.strategy, r.config.batch_size, r.config.steps) for r in done} == {
        ("local", 1, 30), ("local", 2, 15), ("parameter_server", 1, 30), ("parameter_server", 2, 15),
    }  # fmt: skip
    assert len(probes) == 2  # one per batch size, whatever the strategy
    more = sweep.model_copy(update={"repeats": 2})
    again = run_sweep(more, "x", tmp_path, QUIET, at(0.3))  # the machine is slower now
    assert {r.cell for r in again} == {r.cell for r in done}
    assert len(probes) == 2
    assert steps_of(read_sweep(tmp_path / "sweep.yaml")) == steps_of(folder.with_probes(sweep, tmp_path))


def test_a_sweep_killed_while_it_probes_begins_anew(tmp_path: Path) -> None:
    sweep = make_sweep([{"strategy": "local", "measure_s": 3}])

    def killed(*_: Any) -> Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, "x", tmp_path, QUIET, killed)
    (record,) = run_sweep(sweep, "x", tmp_path, QUIET, launch_at(lambda _: 0.5))
    assert record.config.steps == 6


def test_a_probe_that_fails_leaves_the_others_and_its_run_says_why(tmp_path: Path) -> None:
    sweep = make_sweep([{"strategy": "local", "batch_size": [1, 2, 3], "measure_s": 3}])
    done = run_sweep(sweep, "x", tmp_path, QUIET, failing_at(lambda run: run.config.batch_size == 2))
    assert {r.config.batch_size: r.status for r in done} == {1: "ok", 2: "failed", 3: "ok"}
    assert len(read_sweep(tmp_path / "sweep.yaml").probed) == 2


def test_a_precision_in_software_is_measured_for_a_shorter_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = make_sweep([{"strategy": "local", "precision": ["fp32", "bf16"], "device": "cpu", "measure_s": 40}])
    probed = [
        work.OneWorker(step_s=1.0, in_software=slow, knobs=work.probe(config).model_dump(exclude_defaults=True))
        for config, slow in zip(cells.runs("x"), (False, True), strict=True)
    ]
    assert steps_of(cells.model_copy(update={"probed": probed})) == [40, 10]
    for flags, has in (("fma avx2", False), ("fma avx512_bf16", True)):
        monkeypatch.setattr(devices, "cpu_flags", lambda flags=flags: set(flags.split()))
        assert work.computed_in_software(cells.runs("x")[1]) is not has
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not devices.cpu_computes("bf16")


def test_there_are_enough_steps_and_whole_exchanges() -> None:
    sweep = make_sweep([{"strategy": "parameter_server", "sync_every": [1, 4], **SLEEP, "measure_s": 0.1}])
    assert steps_of(sweep) == [work.MIN_STEPS, 4]
    assert all(config.warmup_steps % config.sync_every == 0 for config in sweep.runs("x"))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"measure_s": 1, "steps": 5}, "measure_s: it decides the number of steps"),
        ({"measure_s": 0}, "measure_s: "),
        ({"measure_s": 1, "compute": "none"}, "has no compute to time"),
        ({"stage": 0}, "stage: "),
    ],
)
def test_wrong_keys_of_a_block_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        make_sweep([{"strategy": "local", **keys}]).runs("x")


def test_a_sweep_without_real_compute_needs_no_probe(tmp_path: Path) -> None:
    run_sweep(make_sweep([{"strategy": "local", **SLEEP, "measure_s": 4}]), "x", tmp_path, QUIET, instant)
    assert read_sweep(tmp_path / "sweep.yaml").probed == []
