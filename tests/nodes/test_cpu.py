"""Laws of who used the cores: what the ranks used themselves does not count, and ticks need time."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.nodes import cpu
from bench.nodes.cpu import IDLE, CpuMonitor, CpuUse


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.floats(0, 0.9))
def test_foreign_cpu_does_not_depend_on_what_the_ranks_used(own: list[float], foreign: float) -> None:
    ranks = [CpuUse(sum(own) + 2 * 4 * foreign, seconds, wall_s=2.0, cores=4, run_delay_share=0.0) for seconds in own]
    assert cpu.foreign_share(ranks) == pytest.approx(foreign)


def test_a_run_shorter_than_many_ticks_has_no_share() -> None:
    assert cpu.foreign_share([CpuUse(0.4, 0.1, wall_s=0.4, cores=2, run_delay_share=0.0)]) is None
    assert cpu.foreign_share([IDLE]) == 0


def test_this_process_is_seen_by_both_counters() -> None:
    monitor, begin = CpuMonitor(), time.process_time()
    while time.process_time() - begin < 0.1:
        pass
    used = monitor.end()
    assert used.own_s >= 0.1
    assert used.machine_s >= 0.05  # counted in ticks
    assert used.cores == len(os.sched_getaffinity(0))
    assert used.run_delay_share >= 0
