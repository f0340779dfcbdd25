"""What of a sweep has not run: how much, why, and what the same command would add."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.config import BadInput
from bench.records import PlannedRun, RunRecord
from bench.sweep import estimate, folder, work
from bench.sweep.estimate import RunTimes, format_duration
from bench.sweep.file import Sweep, read_recorded_sweep
from bench.sweep.plan import missing, plan, replacements


def of_folder(out: Path) -> str:
    """Return `describe` for a results folder; blank if all has run, or if the folder does not say what was planned."""
    try:
        sweep, launches = planned(out)
    except BadInput:
        return ""
    found = folder.read_records(out)
    if not are_of_plan(found, launches):
        return ""
    interrupted = (out / folder.SCRATCH).exists()
    return " ".join(describe(launches, found, sweep, interrupted=interrupted))


def planned(out: Path) -> tuple[Sweep, list[list[PlannedRun]]]:
    """Return the sweep of a results folder and its launches; BadInput if its sweep.yaml cannot be planned."""
    sweep = read_recorded_sweep(out / "sweep.yaml")
    return sweep, plan(sweep, str(out / "sweep.yaml"))


def are_of_plan(found: Sequence[RunRecord], launches: Sequence[list[PlannedRun]]) -> bool:
    """Whether any of these runs is one of a plan: not if the knobs of an earlier version had other defaults."""
    return bool({run.run_id for launch in launches for run in launch} & {run_id_now(record) for record in found})


def run_id_now(record: RunRecord) -> str:
    """Return a run's name by its config: an older version may have named its cell otherwise."""
    return PlannedRun(config=record.config, repeat=record.repeat, attempt=record.attempt).run_id


def describe(
    launches: Sequence[list[PlannedRun]], found: Sequence[RunRecord], sweep: Sweep, *, interrupted: bool
) -> list[str]:
    """Return how many planned runs are missing and why, how many were disturbed, and what the same command adds."""
    here = [record.model_copy(update={"run_id": run_id_now(record)}) for record in found]
    times = RunTimes(found, work.by_probe(sweep.probed))
    return [
        *_missing(launches, here, sweep, times, interrupted=interrupted),
        *_disturbed(replacements(launches, here, sweep.max_replacements), times),
    ]


def _missing(
    launches: Sequence[list[PlannedRun]], found: Sequence[RunRecord], sweep: Sweep, times: RunTimes, *,
    interrupted: bool,
) -> list[str]:  # fmt: skip
    """Return how many planned runs have no record or failed, and what running them costs: two sentences, or none."""
    impossible = {record.run_id for record in found if record.status == "unsupported"}
    todo = [[run for run in planned if run.run_id not in impossible] for planned in missing(launches, found)]
    runs = [run for planned in todo for run in planned]
    if not runs:
        return []
    failed = {record.run_id for record in found} & {run.run_id for run in runs}
    never = len(runs) - len(failed)
    why = (
        "the sweep was interrupted"
        if interrupted or not sweep.budget
        else f"the budget of {sweep.budget} ended before them"
    )
    parts = [f"{never} have not run ({why})"] * (never > 0) + [f"{len(failed)} failed"] * bool(failed)
    total = sum(map(len, launches))
    return [
        f"{len(runs)} of {total} planned runs are missing: {' and '.join(parts)}.",
        f"The same command runs them in about {format_duration(estimate.cost(todo, times).seconds)} and adds "
        f"{_launches_added(runs, found)}.",
    ]


def _disturbed(due: Sequence[list[PlannedRun]], times: RunTimes) -> list[str]:
    """Return how many rejected launches the same command replaces, and what that costs: a sentence, or none."""
    count, seconds = sum(map(len, due)), format_duration(estimate.cost(due, times).seconds)
    if not count:
        return []
    which, them = (f"{count} runs were", "them") if count > 1 else ("1 run was", "it")
    return [
        f"{which} disturbed from outside: while nothing else uses this machine, the same command replaces {them} in "
        f"about {seconds}."
    ]


def _launches_added(runs: Sequence[PlannedRun], found: Sequence[RunRecord]) -> str:
    """Return how many launches how many cells would get, and how many they have: '1 launch to each of 3 cells …'."""
    have = Counter(PlannedRun(config=record.config).run_id for record in found if record.status == "ok")
    added = Counter(PlannedRun(config=run.config).run_id for run in runs)
    groups = Counter((added[cell], have[cell]) for cell in added)
    return ", ".join(
        f"{more} launch{'es' * (more > 1)} to {cells} cell{'s' * (cells > 1)} with {before or 'none'} so far"
        for (more, before), cells in sorted(groups.items(), key=lambda item: item[0][1])
    )
