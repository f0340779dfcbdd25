"""Launches without ranks: what they leave for a sweep is what real ones do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from bench import records
from bench.failures import Failure
from bench.records import PlannedRun
from bench.sweep.launch import Outcome
from tests.support.synthetic import make_ledger, make_steps, make_summary


def instant(planned: Sequence[PlannedRun], scratch: Path, poll: Callable[[], float]) -> Outcome:
    """Every run is ok at once."""
    for run in planned:
        write_run(run, scratch / "result")
        poll()
    return Outcome(0, False, "")


def rejecting(wanted: Callable[[PlannedRun], bool]) -> Callable[..., Outcome]:
    """Launches in which the guard rejects the wanted runs."""

    def launch(planned: Sequence[PlannedRun], scratch: Path, poll: Callable[[], float]) -> Outcome:
        for run in planned:
            more = {"status": "invalid", "reason": "others used the cores", "rejected": True} if wanted(run) else {}
            write_run(run, scratch / "result", **more)
            poll()
        return Outcome(0, False, "")

    return launch


def failing_at(wanted: Callable[[PlannedRun], bool]) -> Callable[..., Outcome]:
    """Launches whose rank 0 fails at the first wanted run."""

    def launch(planned: Sequence[PlannedRun], scratch: Path, poll: Callable[[], float]) -> Outcome:
        good = [run for run in planned if not any(map(wanted, planned[: planned.index(run) + 1]))]
        instant(good, scratch, poll)
        if len(good) == len(planned):
            return Outcome(0, False, "")
        failure = Failure(0, "worker", "here", "ValueError", "no such luck", "Traceback: ValueError: no such luck\n")
        (scratch / "rank-0.failure").write_text(json.dumps(asdict(failure)))
        (scratch / "rank-0.log").write_text(failure.traceback)
        (scratch / "log").write_text("a launcher's words\n")
        return Outcome(1, False, "a launcher's words\n")

    return launch


def write_run(run: PlannedRun, result: Path, step_s: float | None = None, **more: object) -> None:
    """Leave a run's record and samples; `more` are fields of the record that differ from those of an ok run."""
    summary = make_summary(run.config, 1000.0, 2.5)
    step_s = summary.step_s if step_s is None else step_s
    summary = summary.model_copy(update={"step_s": step_s})
    steps_s = step_s * run.config.total_steps
    record = run.record("ok", "", summary=summary, ledger=make_ledger(run.config), steps_s=steps_s)
    records.write_steps(result, run.run_id, make_steps(record))
    records.append(result, record.model_copy(update=more))
