"""When a sweep stops: after a signal, at the end of its budget, or once every interval is narrow enough."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

from bench.records import RunRecord

# With fewer launches even their whole range covers the median in less than 95 % of cases: 1 - 2^(1-n).
MIN_LAUNCHES = 6


class BudgetSpent(Exception):
    """The next run would end after the time that a sweep may take."""


class StopCondition:
    """Whether a sweep may begin its next run: not after a signal, nor if the run would end after the budget.

    The budget is in seconds from now; None: no limit.
    """

    def __init__(self, budget_s: float | None) -> None:
        self._ends_at = float("inf") if budget_s is None else time.monotonic() + budget_s
        self._interrupted = False

    def check(self, next_s: float = 0.0) -> None:
        """Raise KeyboardInterrupt after a signal, BudgetSpent if `next_s` seconds more end after the budget."""
        if self._interrupted:
            raise KeyboardInterrupt
        if not self.allows(next_s):
            raise BudgetSpent

    def allows(self, seconds: float) -> bool:
        """Return whether that many seconds more end within the budget."""
        return time.monotonic() + seconds < self._ends_at

    @contextlib.contextmanager
    def handling_signals(self, log: Callable[[str], None]) -> Iterator[None]:
        """Handle signals in a block: the first SIGINT stops after the running cell, a second one or SIGTERM at once."""

        def interrupt(number: int, _: FrameType | None) -> None:
            if number == signal.SIGTERM or self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            log("interrupted: the running cell is finished first; Ctrl-C again to stop now")

        previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def imprecise_cells(found: Iterable[RunRecord], target: float) -> set[str]:
    """Return the cells that need more launches: those whose interval of tokens_per_s is wider than the target.

    `target` is the half width of the 95 % interval relative to the median.
    """
    from bench.intervals import median_interval  # imported here: numpy is slow to import

    rates: dict[str, list[float]] = {}
    for record in found:
        if record.status == "ok" and record.summary:
            rates.setdefault(record.cell, []).append(record.summary.tokens_per_s)
    wide = set()
    for cell, samples in rates.items():
        median, low, high = median_interval(samples)
        if len(samples) < MIN_LAUNCHES or (high - low) / 2 > target * median:
            wide.add(cell)
    return wide
