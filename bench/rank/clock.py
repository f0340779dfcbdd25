"""A timer for the phases of a step that synchronises the device before it reads the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("data", "forward", "backward", "exposed_communication", "optimizer")


class PhaseTimer:
    """Phases of the current step: `seconds` by name, and `spans` (name, begin, end) on time.perf_counter()."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.begin_step()

    def begin_step(self) -> None:
        """Reset the phases and start timing a step."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.spans: list[tuple[str, float, float]] = []
        self._began = self.now()

    def now(self) -> float:
        """Synchronise the device; return time.perf_counter(), seconds."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the duration of the block to a phase."""
        began = self.now()
        yield
        ended = self.now()
        self.seconds[name] += ended - began
        self.spans.append((name, began, ended))

    def move(self, source: str, target: str, seconds: float) -> None:
        """Attribute seconds measured in one phase to another."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds

    def step_s(self) -> float:
        """Return the seconds since begin_step()."""
        return self.now() - self._began
