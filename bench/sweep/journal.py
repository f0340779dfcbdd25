"""What a sweep writes and prints about each run: the record, the progress bar, the share of time in steps."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench import files, records
from bench.records import PlannedRun, RunningNow, RunRecord
from bench.sweep.folder import SCRATCH


class Journal:
    """Records every run of a sweep as it begins and ends; `done` are the records so far."""

    def __init__(self, out: Path, console: Console) -> None:
        self.done: list[RunRecord] = []
        self._out = out
        self._console = console
        self._total = 0
        self._began = self._last_end = time.monotonic()
        bar = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        text = (TextColumn("{task.fields[now]}"), TextColumn("[dim]{task.fields[last]}"))
        self.progress = Progress(*bar, *text, console=console, disable=not console.is_terminal)
        self._task = self.progress.add_task("sweep", total=0, now="", last="")

    def add_runs(self, more: int) -> None:
        """Add to the number of runs to do."""
        self._total += more
        self.progress.update(self._task, total=self._total)

    def begin_sweep(self, to_do: int, before: int) -> None:
        """Print how many runs are to be done, and how many records there are."""
        self.add_runs(to_do)
        self._last_end = time.monotonic()  # no run pays for probes
        self.print(f"{to_do} runs to do, {before} records before")

    def print(self, text: str) -> None:
        """Print one line, above the progress bar if there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, run: PlannedRun) -> None:
        """Note that a run begins, on the progress bar and for `psring status`."""
        now = RunningNow(run_id=run.run_id, pid=os.getpid(), host=socket.gethostname(), since=records.now())
        files.write_whole(self._out / SCRATCH / "now", now.model_dump_json())
        self.progress.update(self._task, now=f"#{run.repeat} {run.describe()}")

    def end(self, run: PlannedRun, record: RunRecord) -> RunRecord:
        """Append a run's record to the folder, with the seconds since the last one, then print and return it."""
        now = time.monotonic()
        record = record.model_copy(update={"wall_s": now - self._last_end})
        self._last_end = now
        records.append(self._out, record)
        self.done.append(record)
        failures = Counter(r.status for r in self.done if r.status != "ok")
        failed = "".join(f"[red]{count} {status}[/red] " for status, count in failures.items())
        self.progress.update(self._task, advance=1, last=failed + escape(record.describe()))
        if not self._console.is_terminal:
            self.print(f"{len(self.done)}/{self._total} #{run.repeat} {run.describe()}: {record.describe()}")
        return record

    def close(self) -> None:
        """Print the share of this sweep's time that was steps."""
        for line in describe_step_share(self.done, time.monotonic() - self._began):
            self.print(line)


def describe_step_share(found: Sequence[RunRecord], wall_s: float | None = None) -> list[str]:
    """Return a line with the share of time that was steps, warm-up included; none if nothing was timed.

    The time is `wall_s`, or without it what the runs' records say that they took.
    """
    timed = [record for record in found if record.wall_s]
    steps_s = sum(record.steps_s or 0 for record in timed)
    if not steps_s:
        return []
    wall_s = wall_s or sum(record.wall_s or 0 for record in timed)
    return [f"steps took {steps_s / wall_s:.0%} of {wall_s:,.0f} s, warm-up included; the rest is start-up and checks"]
