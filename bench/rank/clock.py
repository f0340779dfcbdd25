"""A timer of the phases of a step that waits for the device before it reads the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("data", "forward", "backward", "exposed_communication", "optimizer")


class PhaseTimer:
    """Seconds per phase of one step, from this process's monotonic clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.begin_step()

    def begin_step(self) -> None:
        """Forget the last step's phases and start the step's clock."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.spans: list[tuple[str, float, float]] = []  # name, begin, end
        self._began = self.now()

    def now(self) -> float:
        """Return the time once the device has finished all it was given, seconds."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the enclosed block to a phase."""
        began = self.now()
        yield
        ended = self.now()
        self.seconds[name] += ended - began
        self.spans.append((name, began, ended))

    def move(self, source: str, target: str, seconds: float) -> None:
        """Book seconds that were spent in one phase on behalf of another."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds

    def step_s(self) -> float:
        """Return the seconds since begin_step()."""
        return self.now() - self._began
