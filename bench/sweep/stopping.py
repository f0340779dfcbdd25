"""When a sweep ends: asked to by a signal, when its budget is spent, or when every interval is narrow enough."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

from bench.records import RunRecord

# With fewer launches not even their whole range covers the median in 95 % of all cases: 1 - 2^(1-n).
LEAST_LAUNCHES = 6


class BudgetSpent(Exception):
    """The sweep has taken as long as it may."""


class Stop:
    """What a sweep asks between two runs: whether to go on."""

    def __init__(self, budget_s: float | None) -> None:
        self._ends_at = float("inf") if budget_s is None else time.monotonic() + budget_s
        self._interrupted = False

    def check(self) -> None:
        """Return if the sweep may go on; else raise KeyboardInterrupt or BudgetSpent."""
        if self._interrupted:
            raise KeyboardInterrupt
        if time.monotonic() >= self._ends_at:
            raise BudgetSpent

    @contextlib.contextmanager
    def on_signals(self, say: Callable[[str], None]) -> Iterator[None]:
        """Ctrl-C lets the running cell finish, a second one and SIGTERM end it at once: KeyboardInterrupt."""

        def interrupt(number: int, _: FrameType | None) -> None:
            if number == signal.SIGTERM or self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            say("interrupted: the running cell is finished first; Ctrl-C again to stop now")

        previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def imprecise(found: Iterable[RunRecord], target: float) -> set[str]:
    """Return the cells that need more launches: those whose interval of tokens_per_s is wider than the target.

    `target` is the half width of the 95 % interval relative to the median.
    """
    from bench.intervals import median_interval  # here, so that a sweep without a target does not wait for numpy

    rates: dict[str, list[float]] = {}
    for record in found:
        if record.status == "ok" and record.summary:
            rates.setdefault(record.cell, []).append(record.summary.tokens_per_s)
    wide = set()
    for cell, samples in rates.items():
        median, low, high = median_interval(samples)
        if len(samples) < LEAST_LAUNCHES or (high - low) / 2 > target * median:
            wide.add(cell)
    return wide
