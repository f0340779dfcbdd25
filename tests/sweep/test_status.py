"""Laws of the status: every folder that a run or a sweep wrote can be described."""

from __future__ import annotations

from pathlib import Path

import yaml

from bench import records
from bench.sweep.status import describe
from tests.support.synthetic import make_record


def write_folder(folder: Path, **timed: float) -> None:
    """Write what a finished run of one cell leaves."""
    record = make_record().model_copy(update=timed)
    cell = record.config.model_dump(exclude_defaults=True)
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"grid": [cell]}), encoding="utf-8")
    (folder / "environment.json").write_text("{}", encoding="utf-8")
    records.append(folder, record)


def test_a_run_without_a_sweeps_wall_time_is_described(tmp_path: Path) -> None:
    write_folder(tmp_path, steps_s=3.0)
    assert "1 of 1 runs done, 0 missing" in describe(tmp_path)
    assert not any("were steps" in line for line in describe(tmp_path))


def test_the_share_of_steps_is_of_the_wall_time(tmp_path: Path) -> None:
    write_folder(tmp_path, steps_s=3.0, wall_s=4.0)
    assert any(line.startswith("steps took 75% of 4 s") for line in describe(tmp_path))
