"""Time one worker's step of every setting whose steps follow from it, before the first launch of a sweep."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import files, records
from bench.config import BadInput, RunConfig
from bench.records import PlannedRun, RunRecord
from bench.sweep import folder, work
from bench.sweep.file import Sweep
from bench.sweep.launch import Launch


def probed(sweep: Sweep, where: str, out: Path, launch_ranks: Launch, say: Callable[[str], None]) -> Sweep:
    """Return the sweep with the probes that it lacks, and store it in its folder.

    A probe that fails leaves a guess: the runs of its setting will fail too, and say why.
    """
    timed = (cell.config for cell in sweep.cells(where) if cell.is_timed and not cell.config.unsupported())
    todo = work.probes(timed, work.by_probe(sweep.probed))
    if not todo:
        return sweep
    say(f"timing one worker's step of {len(todo)} settings")
    found = [_measured(record) for record in _run(todo, folder.new_scratch(out), launch_ranks) if record.summary]
    sweep = sweep.model_copy(update={"probed": [*sweep.probed, *found]})
    folder.write_sweep(out, sweep)
    return sweep


def _run(configs: Sequence[RunConfig], scratch: Path, launch_ranks: Launch) -> list[RunRecord]:
    """Run all probes on one rank; after one that fails, those behind it again."""
    planned = [PlannedRun(config=config) for config in configs]
    deadline = time.monotonic() + sum(config.timeout_s for config in configs)
    found: list[RunRecord] = []
    while planned:
        files.write_whole(scratch / "plan", "".join(run.model_dump_json() + "\n" for run in planned))
        try:
            launch_ranks(planned, scratch, lambda: deadline)
        except BadInput:
            return found
        found = records.read(scratch / "result") if records.size(scratch / "result") else []
        ended = {record.run_id for record in found}
        planned = [run for run in planned if run.run_id not in ended][1:]
    return found


def _measured(record: RunRecord) -> work.OneWorker:
    assert record.summary is not None
    return work.OneWorker(
        step_s=record.summary.step_s,
        in_software=work.computed_in_software(record.config),
        knobs=record.config.model_dump(mode="json", exclude_defaults=True),
    )
