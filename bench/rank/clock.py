"""Timers of the phases of a step and of the layers inside one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

Mark = Any  # a moment: time.perf_counter() on a CPU, a CUDA event on a GPU
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


class DeviceClock:
    """Marks moments in a device's order of work without waiting for it, and measures the time between two of them.

    On a GPU a mark is a CUDA event: reading the host's clock after each layer would make the host wait for the GPU
    there, and a step of small kernels would take a tenth longer than it does.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"

    def mark(self) -> Mark:
        """Return this moment."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between(self, begin: Mark, end: Mark) -> float:
        """Return the seconds from one mark to a later one; waits until the GPU has reached it."""
        if not self._on_gpu:
            return float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
