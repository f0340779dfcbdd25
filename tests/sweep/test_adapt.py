"""Laws of slowing emulated cells down: one factor for all of them, M/(B·T) kept, decided once per folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import links, records
from bench.durations import durations
from bench.report.method import method
from bench.scale_model import communication_compute_ratio
from bench.sweep import adapt
from bench.sweep import run as sweep
from bench.sweep.file import Sweep
from tests.support.launches import instant
from tests.support.plans import QUIET, make_sweep

ASLEEP: dict[str, object] = {"compute": "emulated", "emulated_forward_s": 0.1, "emulated_backward_s": 0.2}
CELLS: list[dict[str, object]] = [
    {"strategy": "local", "link": "200mbit", **ASLEEP},
    {"strategy": "mpi_ring", "num_workers": 4, "link": "n0=1gbit,*=50mbit", **ASLEEP},
    {"strategy": "mpi_ring", "num_workers": 2, "link": "200mbit", "compute": "none"},
    {"strategy": "local", **ASLEEP},  # the baseline of emulated cells
    {"strategy": "local"},
]


def slowed(factor: float) -> Sweep:
    return make_sweep(CELLS).model_copy(update={"slowdown": factor})


@pytest.mark.parametrize("factor", [1.0, 1.25, 7.75])
def test_links_and_compute_are_slower_by_one_factor_and_their_ratio_stays(factor: float) -> None:
    for asked, config in zip(make_sweep(CELLS).runs("x"), slowed(factor).runs("x"), strict=True):
        is_emulated = asked.link is not None or asked.compute == "emulated"
        assert config.slowdown == (factor if is_emulated else 1)
        assert durations(config).compute_s == pytest.approx(config.slowdown * durations(asked).compute_s)
        ratios = [communication_compute_ratio(each) or 0.0 for each in (asked, config)]
        assert ratios[0] == pytest.approx(ratios[1], rel=1e-4)
        if asked.link:
            rates = [links.parse_links(each.link or "", each.world_size) for each in (asked, config)]
            assert rates[0] == pytest.approx([factor * rate for rate in rates[1]], rel=1e-4)
        else:
            assert config.link is None
        assert (config.digest() == asked.digest()) == (config.slowdown == 1)


def test_a_delay_grows_alike() -> None:
    (config,) = make_sweep([{"strategy": "local", "link": "1mbit", "delay": "2ms"}]).model_copy(
        update={"slowdown": 1.5}
    ).runs("x")  # fmt: skip
    assert links.parse_delay(config.delay or "") == pytest.approx(0.003)


def test_a_machine_that_is_fast_enough_is_not_slowed_and_a_slow_one_never_too_little() -> None:
    assert adapt.factor(1.6e9, 0.6e-9, cores=2) == 1
    for cost in (1e-9, 2e-9, 5e-9):
        found = adapt.factor(1.6e9, cost, cores=2)
        assert 1.6e9 / found / 8 * cost / 2 <= adapt.MAX_SOCKET_SHARE < 1.6e9 / (found - adapt.STEP) / 8 * cost / 2


def test_a_folder_keeps_the_slowdown_that_was_decided_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_enter_sandbox", lambda launches: "")
    monkeypatch.setattr(adapt, "socket_cpu_s_per_byte", lambda: 50e-9)
    plan = make_sweep(CELLS)
    sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant)
    found = {record.config.slowdown for record in records.read(tmp_path)}
    assert len(found) == 2  # the cell that computes on this machine itself is not slowed
    monkeypatch.setattr(adapt, "socket_cpu_s_per_byte", lambda: 99e-9)
    assert sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant) == []
    as_asked = adapt.adapted(plan.model_copy(update={"slowdown": 1.0}), "plan")
    assert {config.slowdown for config in as_asked.runs("plan")} == {1}


def test_a_report_says_so() -> None:
    assert any("1.5 times slower" in paragraph for paragraph in method(0.02, slowdown=1.5))
    assert not any("times slower" in paragraph for paragraph in method(0.02))
