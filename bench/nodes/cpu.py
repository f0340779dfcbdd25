"""Who used this machine's cores during a run: its ranks or others, and how long its threads waited for one."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# The kernel counts a machine's CPU time in ticks of 10 ms: over less time a share would mostly be rounding.
MIN_WINDOW_S = 0.5


@dataclass(frozen=True)
class CpuUse:
    """CPU seconds in one run, as one rank saw them."""

    machine_s: float  # of all processes on the cores that the rank may use, and stolen by the hypervisor
    own_s: float  # of this rank
    wall_s: float
    cores: int
    run_delay_share: float  # share of the run that the rank's worst thread spent ready but without a core


IDLE = CpuUse(machine_s=0.0, own_s=0.0, wall_s=1.0, cores=1, run_delay_share=0.0)


class CpuMonitor:
    """Reads the counters of this machine's cores and of this process, from its creation to `end`."""

    def __init__(self) -> None:
        self._cores = os.sched_getaffinity(0)
        self._begin, self._delays = self._read(), run_delays()

    def _read(self) -> tuple[float, float, float]:
        return machine_cpu_s(self._cores), time.process_time(), time.monotonic()

    def end(self) -> CpuUse:
        """Return what has been used since the monitor was created."""
        machine_s, own_s, wall_s = (after - before for before, after in zip(self._begin, self._read(), strict=True))
        longest_s = max(seconds - self._delays.get(thread, 0.0) for thread, seconds in run_delays().items())
        return CpuUse(machine_s, own_s, wall_s, len(self._cores), longest_s / wall_s)


def machine_cpu_s(cores: set[int]) -> float:
    """Seconds that these cores have worked for processes, or for other virtual machines (steal), since boot."""
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *counts = line.split()
        if name.startswith("cpu") and name != "cpu" and int(name[3:]) in cores:
            user, nice, system, _, _, _, _, steal, *_ = map(int, counts)
            ticks += user + nice + system + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def run_delays() -> Mapping[str, float]:
    """Seconds that each thread of this process has been ready and had no core (schedstats, field 2)."""
    threads = Path("/proc/self/task").glob("*/schedstat")
    return {path.parent.name: int(path.read_text().split()[1]) / 1e9 for path in threads}


def foreign_share(ranks: Sequence[CpuUse], min_window_s: float = MIN_WINDOW_S) -> float | None:
    """Share of one machine's cores that others than these ranks used; None over less than `min_window_s`."""
    wall_s = max(rank.wall_s for rank in ranks)
    if wall_s < min_window_s:
        return None
    foreign_s = max(rank.machine_s for rank in ranks) - sum(rank.own_s for rank in ranks)
    return max(0.0, foreign_s) / wall_s / max(rank.cores for rank in ranks)
