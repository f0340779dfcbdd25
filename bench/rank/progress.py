"""How far a run is: told by rank 0 between steps, outside the timed part, and seldom."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from bench.config import RunConfig
from bench.mpi import RankInfo
from bench.records import StepRecord

REFRESH_S = 1.0  # on a terminal; drawing a line takes about a millisecond
FIRST_LINE_S, LONGEST_S = 2.0, 60.0  # elsewhere: between two lines, doubling from the one to the other


def on_terminal(rank_info: RankInfo) -> bool:
    """Return whether the user reads this rank's standard error on a terminal, through mpirun or directly.

    A rank's own is a pipe to mpirun, so that mpirun's counts; horovodrun and srun change lines on their way.
    """
    if rank_info.launcher == "none":
        return sys.stderr.isatty()
    try:
        return rank_info.launcher == "mpirun" and os.readlink(f"/proc/{os.getppid()}/fd/2").startswith("/dev/pts/")
    except OSError:  # another user's, or started otherwise
        return False


class RunProgress:
    """Tells after a step how far the run is: on a terminal one line that changes, elsewhere a few lines."""

    def __init__(self, config: RunConfig, console: Console) -> None:
        self._config = config
        self._console = console
        text = (BarColumn(8), TextColumn("{task.description}"))
        self._bar = Progress(
            *text, console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._task = self._bar.add_task("", total=config.total_steps)
        self._began: float | None = None  # when the first step had ended: it takes longer than any other
        self._interval_s = REFRESH_S if console.is_terminal else FIRST_LINE_S
        self._due = 0.0

    def tell(self, step: StepRecord) -> None:
        """Say that a step is done, if it is time to say something."""
        now = time.monotonic()
        if self._began is None:
            self._began, self._due = now, now + self._interval_s
            return
        is_last = step.step + 1 == self._config.total_steps
        if is_last:
            self.close()  # well before the result is printed: launchers forward two streams in any order
        if is_last or now < self._due:
            return
        words = self.describe(step, now - self._began)
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step.step + 1, description=words)
            self._bar.start()
            self._bar.refresh()
        else:
            self._console.print(f"psring: {words}", markup=False, highlight=False, soft_wrap=True)
            self._interval_s = min(2 * self._interval_s, LONGEST_S)
        self._due = now + self._interval_s

    def describe(self, step: StepRecord, elapsed_s: float) -> str:
        """Return where the run is after a step, `elapsed_s` seconds after the first one."""
        done, total, step_s = step.step + 1, self._config.total_steps, elapsed_s / step.step
        words = [f"step {done} of {total}" + " (warm-up)" * step.warmup]
        words.append(f"{self._config.tokens_per_step / step_s:,.0f} tokens/s so far")
        if step.loss is not None:
            words.append(f"loss {step.loss:.3f}")
        return ", ".join([*words, f"about {step_s * (total - done):.0f} s to go"])

    def close(self) -> None:
        """Remove the line from the terminal."""
        if self._bar.live.is_started:
            self._bar.stop()
