"""Energy from the kernel's RAPL counters: packages added up, a wrapped counter recognised, a blank where unreadable."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.nodes.energy import EnergyMeter, machine
from bench.rank.numbers import RankReport, energy_j


def zone(root: Path, name: str, kind: str, energy_uj: int) -> None:
    (root / name).mkdir(exist_ok=True)
    (root / name / "name").write_text(f"{kind}\n")
    (root / name / "energy_uj").write_text(f"{energy_uj}\n")
    (root / name / "max_energy_range_uj").write_text("1000000000\n")


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    for name, kind in (("intel-rapl:0", "package-0"), ("intel-rapl:1", "package-1"), ("intel-rapl:0:0", "core"),
                       ("intel-rapl:2", "psys")):  # fmt: skip
        zone(tmp_path, name, kind, 5_000_000)
    meter = EnergyMeter(tmp_path)
    zone(tmp_path, "intel-rapl:0", "package-0", 7_000_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 1_000_000)  # it began again at 1000 J
    zone(tmp_path, "intel-rapl:0:0", "core", 9_000_000)
    assert meter.joules() == pytest.approx(2 + 996)


def test_without_counters_the_energy_is_unknown(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).joules() is None
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    meter = EnergyMeter(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.joules() is None


def report(where: str, joules: float | None) -> RankReport:
    return RankReport("host", frozenset(), is_server=False, machine=where, energy_j=joules)


def test_a_machine_counts_once_however_many_ranks_it_has() -> None:
    assert energy_j([report("a", 3.0), report("a", 3.0), report("b", 2.0)]) == 5
    assert energy_j([report("a", 3.0), report("b", None)]) is None
    assert machine() == machine() != ""
