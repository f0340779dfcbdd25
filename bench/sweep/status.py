"""The progress of a sweep, read from its results folder: also while it runs, from another terminal."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import psutil
from pydantic import ValidationError

from bench.config import BadInput
from bench.records import PlannedRun, RunningNow, RunRecord
from bench.sweep import estimate, folder, journal, remaining, work
from bench.sweep.estimate import RunTimes
from bench.sweep.plan import missing


def describe(out: Path) -> list[str]:
    """Return lines with the running run, runs done and missing, time left, throughput per cell, and failures."""
    if not (out / "environment.json").exists() or not (out / "sweep.yaml").exists():
        raise BadInput(f"{out}: no sweep.yaml there; give the folder that `psring sweep --out` wrote")
    found = folder.read_records(out)
    try:
        lines = _progress(out, found)
    except BadInput as error:
        if not found:
            raise
        lines = [f"{len(found)} records; how many runs are missing is not known: {error}"]
    return [*lines, *journal.describe_step_share(found), *_rates(found), *_failures(found)]


def _progress(out: Path, found: list[RunRecord]) -> list[str]:
    """Return the lines about the plan; BadInput if sweep.yaml cannot be planned."""
    sweep, launches = remaining.planned(out)
    if found and not remaining.are_of_plan(found, launches):
        return [f"{len(found)} records of another version of psring; it says how many runs are missing"]
    here = [record.model_copy(update={"run_id": remaining.run_id_now(record)}) for record in found]
    left = missing(launches, here)
    planned = sum(map(len, launches))
    lines = [_running(out, [run for launch in launches for run in launch])]
    lines += [f"{planned - sum(map(len, left))} of {planned} runs done, {sum(map(len, left))} missing"]
    if sweep.precision_target is not None:
        lines += [
            f"then repeats until every interval is within {sweep.precision_target:.1%} or {sweep.budget} have passed"
        ]
    if left:
        lines += [f"remaining: {estimate.cost(left, RunTimes(found, work.by_probe(sweep.probed))).describe()}"]
    return lines


def _running(out: Path, planned: Iterable[PlannedRun]) -> str:
    """Name the run that is under way, or say that there is none."""
    try:
        now = RunningNow.model_validate_json((out / folder.SCRATCH / "now").read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return "no run is under way"
    if now.host == socket.gethostname() and not psutil.pid_exists(now.pid):
        return "not running: the sweep was killed; the same command goes on from here"
    run = next((f"#{run.repeat} {run.describe()}" for run in planned if run.run_id == now.run_id), now.run_id)
    return f"at {run}, since {now.since} (process {now.pid} on {now.host})"


def _rates(found: Iterable[RunRecord]) -> list[str]:
    """Return a line per cell with the median of tokens_per_s so far."""
    rates: dict[str, list[float]] = {}
    for record in found:
        if record.status == "ok" and record.summary:
            name = PlannedRun(config=record.config).describe()
            rates.setdefault(f"{name} ({record.cell})", []).append(record.summary.tokens_per_s)
    return [f"  {name}: {median(samples):,.0f} tokens/s, n {len(samples)}" for name, samples in rates.items()]


def _failures(found: Iterable[RunRecord]) -> list[str]:
    bad = [record for record in found if record.status not in ("ok", "unsupported")]
    logs = {record.run_id: f" ({record.log})" if record.log else "" for record in bad}
    return [f"{record.run_id} {record.status}: {record.reason}{logs[record.run_id]}" for record in bad]
