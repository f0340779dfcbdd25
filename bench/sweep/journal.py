"""What a sweep says and writes while it runs: each run goes to the folder, the screen and the account of time."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench import records
from bench.records import PlannedRun, RunningNow, RunRecord
from bench.sweep.folder import SCRATCH


class Journal:
    """Takes every run of a sweep as it begins and as it ends."""

    def __init__(self, out: Path, console: Console, missing: int) -> None:
        self.done: list[RunRecord] = []
        self._out = out
        self._console = console
        self._missing = missing
        self._mark = time.monotonic()
        bar = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        text = (TextColumn("{task.fields[now]}"), TextColumn("[dim]{task.fields[last]}"))
        self.progress = Progress(*bar, *text, console=console, disable=not console.is_terminal)
        self._task = self.progress.add_task("sweep", total=missing, now="", last="")

    def expect(self, more: int) -> None:
        """Count runs that were not planned at first."""
        self._missing += more
        self.progress.update(self._task, total=self._missing)

    def say(self, text: str) -> None:
        """Print one line, above the progress bar if there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def announce(self, run: PlannedRun) -> None:
        """A run begins."""
        now = RunningNow(run_id=run.run_id, pid=os.getpid(), host=platform.node(), since=records.now())
        records.write_whole(self._out / SCRATCH / "now", now.model_dump_json())
        self.progress.update(self._task, now=f"#{run.repeat} {run.describe()}")

    def keep(self, run: PlannedRun, record: RunRecord) -> None:
        """A run has ended: its record goes to the disk before anything else happens."""
        now = time.monotonic()
        record = record.model_copy(update={"wall_s": now - self._mark})
        self._mark = now
        records.append(self._out, record)
        self.done.append(record)
        failures = Counter(r.status for r in self.done if r.status != "ok")
        failed = "".join(f"[red]{count} {status}[/red] " for status, count in failures.items())
        self.progress.update(self._task, advance=1, last=failed + escape(record.describe()))
        if not self._console.is_terminal:
            self.say(f"{len(self.done)}/{self._missing} #{run.repeat} {run.describe()}: {record.describe()}")

    def close(self) -> None:
        """Say where the time of this sweep went."""
        for line in share_in_steps(self.done):
            self.say(line)


def share_in_steps(found: Sequence[RunRecord]) -> list[str]:
    """One line that says how much of a sweep's time its steps were, warm-up included; none if nothing was timed."""
    wall_s = sum(record.wall_s or 0 for record in found)
    steps_s = sum(record.steps_s or 0 for record in found)
    if not steps_s:
        return []
    return [f"{steps_s / wall_s:.0%} of {wall_s:,.0f} s were steps, warm-up included; the rest is start-up and checks"]
