"""Laws of the status: every folder that a run or a sweep wrote can be described."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bench import records
from bench.config import BadInput
from bench.sweep import remaining
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


def rewrite(folder: Path, **changes: object) -> None:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))


@pytest.mark.parametrize("rule", [{"batch_size": 77}, {"strategy": "rings"}, {"batch_size": [1, 2]}, {}])
def test_a_rule_that_an_earlier_version_ignored_does_not_hide_a_folder(tmp_path: Path, rule: dict[str, object]) -> None:
    write_folder(tmp_path)
    rewrite(tmp_path, exclude=[rule, {"batch_size": 78}])
    assert "1 of 1 runs done, 0 missing" in describe(tmp_path)
    rewrite(tmp_path, exclude=[rule], repeats=2)
    assert remaining.of_folder(tmp_path).startswith("1 of 2 planned runs are missing")


def test_records_are_shown_where_the_plan_is_of_another_version(tmp_path: Path) -> None:
    write_folder(tmp_path)
    cells = yaml.safe_load((tmp_path / "sweep.yaml").read_text())["grid"]
    rewrite(tmp_path, grid=[{**cells[0], "batch_size": 77}])
    first, *rest = describe(tmp_path)
    assert "1 records of another version" in first
    assert "tokens/s, n 1" in rest[-1]
    rewrite(tmp_path, grid=[{**cells[0], "batch_sise": 8}])
    first, *rest = describe(tmp_path)
    assert "not known" in first
    assert "batch_sise" in first
    assert "tokens/s, n 1" in rest[-1]
    (tmp_path / "runs.jsonl").unlink()
    with pytest.raises(BadInput, match="batch_sise"):
        describe(tmp_path)
