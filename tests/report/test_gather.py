"""`psring report` on a folder that holds a results folder for each run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bench import cli, records
from bench.config import BadInput
from bench.report.gather import results_folder
from tests.support.synthetic import make_record


def parent(path: Path) -> Path:
    for name, workers, speed in (("ring-1", 2, 100.0), ("ring-2", 2, 110.0), ("ring-3", 4, 180.0)):
        part = path / name
        (part / "steps").mkdir(parents=True)
        record = make_record(repeat=0, tokens_per_s=speed, strategy="ring_allreduce", num_workers=workers)
        records.append(part, record)
        (part / "steps" / f"{record.run_id}.csv").write_text(f"of {name}\n")
    return path


def test_every_run_and_its_samples_are_gathered_and_equal_cells_become_repeats(tmp_path: Path) -> None:
    for _ in range(2):  # again: the folders of the runs stay the truth
        out = results_folder(parent(tmp_path / "out") if not (tmp_path / "out").exists() else tmp_path / "out")
        found = {(record.config.num_workers, record.repeat): record for record in records.read(out)}
        assert {key: record.summary.tokens_per_s for key, record in found.items() if record.summary} == {
            (2, 0): 100.0,
            (2, 1): 110.0,
            (4, 0): 180.0,
        }
        texts = {key: (out / "steps" / f"{record.run_id}.csv").read_text() for key, record in found.items()}
        assert texts == {(2, 0): "of ring-1\n", (2, 1): "of ring-2\n", (4, 0): "of ring-3\n"}


def test_a_folder_with_runs_is_reported_itself(tmp_path: Path) -> None:
    part = parent(tmp_path / "out") / "ring-1"
    assert results_folder(part) == part


def test_a_folder_without_runs_or_with_something_else_in_the_way_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nor in its folders"):
        results_folder(tmp_path)
    (parent(tmp_path / "out") / "all").mkdir()
    with pytest.raises(BadInput, match="move it away"):
        results_folder(tmp_path / "out")


def test_the_report_of_a_parent_has_a_row_per_cell(tmp_path: Path) -> None:
    out = parent(tmp_path / "out")
    for path in out.glob("*/steps/*.csv"):
        path.unlink()
    assert cli.main(["report", str(out)]) == 0
    assert len(pd.read_csv(out / "all" / "summary.csv")) == 2
