"""Loss against time: a target that all reached, the time of the slowest, and who is on the front."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import records
from bench.report import cells, loss
from tests.support.synthetic import make_record, make_steps

costs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs = [
        make_record(repeat=repeat, tokens_per_s=speed, final_loss=loss, strategy=strategy, num_workers=2)
        for strategy, speed, loss in (("ring_allreduce", 100.0, 2.0), ("parameter_server", 200.0, 3.0))
        for repeat in range(2)
    ]
    for run in runs:
        records.append(tmp_path, run)
        records.write_steps(tmp_path, run.run_id, make_steps(run))
    return tmp_path


def test_progress_is_that_of_the_slowest_worker_and_the_mean_loss(folder: Path) -> None:
    runs = records.frame(records.read(folder))
    found = loss.read(folder, runs)
    for run_id, lines in found.groupby("run_id"):
        steps = pd.read_csv(folder / "steps" / f"{run_id}.csv")
        by_step = steps.groupby("step")
        assert lines["elapsed_s"].to_numpy() == pytest.approx(by_step["step_s"].max().cumsum().to_numpy())
        smooth = by_step["loss"].mean().rolling(loss.WINDOW, min_periods=1).mean()
        assert lines["loss"].to_numpy() == pytest.approx(smooth.to_numpy())


def test_the_target_is_what_every_run_reached_and_no_run_reached_it_earlier(folder: Path) -> None:
    runs = records.frame(records.read(folder))
    lines = loss.read(folder, runs)
    table = loss.add_costs(cells.summarize(runs), runs, lines)
    best = lines.groupby("run_id")["loss"].min()
    assert set(table["target_loss"]) == {best.max()}
    for row in table.to_dict("records"):
        first = lines[(lines["cell"] == row["cell"]) & (lines["loss"] <= row["target_loss"])].groupby("run_id").first()
        assert row["steps_to_loss"] == first["step"].median() + 1
        assert row["time_to_loss_s"] == pytest.approx(first["elapsed_s"].median())
        assert row["tokens_to_loss"] == row["steps_to_loss"] * 2 * 8 * 128
    server = table[table["strategy"] == "parameter_server"].iloc[0]
    all_ranks = 2 * server["bytes_sent_per_worker_per_step"] + server["bytes_sent_per_server_per_step"]
    assert server["bytes_to_loss"] == server["steps_to_loss"] * all_ranks


def test_without_steps_nothing_is_known(tmp_path: Path) -> None:
    runs = records.frame([make_record()])
    table = loss.add_costs(cells.summarize(runs), runs, loss.read(tmp_path, runs))
    assert set(loss.COLUMNS) <= set(table.columns)
    assert table[list(loss.COLUMNS[:-1])].isna().all(axis=None)
    assert not table["on_front"].any()


@given(costs)
def test_the_front_holds_exactly_who_nobody_beats(points: list[tuple[int, int]]) -> None:
    def beaten(x: tuple[int, int]) -> bool:
        return any(y != x and y[0] <= x[0] and y[1] <= x[1] for y in points)

    assert list(loss.pareto(np.array(points))) == [not beaten(x) for x in points]


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"step\n1\n", b"worker,step,loss,step_s\n0,zero,1,1\n", b"worker,step,loss,step_s\n0,0,1,-1\n",
     b"worker,step,loss,step_s\n0,0,1", b"\xff\xfe", b"worker,step,loss,step_s\n0,0,1,inf\n",
     b'step,loss,step_s\n"0,1,1\n'],
)  # fmt: skip
def test_a_bad_file_is_named_and_the_others_are_read(content: bytes, tmp_path: Path) -> None:
    runs = records.frame(make_record(repeat=repeat) for repeat in range(3))
    (tmp_path / "steps").mkdir()
    good = "step_s,loss,step,worker\n0.5,3.0,0,0\n0.5,2.0,1,0\n"  # by name: the order of columns does not matter
    for run_id in runs["run_id"]:
        (tmp_path / "steps" / f"{run_id}.csv").write_text(good)
    bad = runs["run_id"][1]
    (tmp_path / "steps" / f"{bad}.csv").write_bytes(content)
    problems: list[str] = []
    found = loss.read(tmp_path, runs, problems)
    assert set(found["run_id"]) == set(runs["run_id"]) - {bad}
    assert found["elapsed_s"].tolist() == [0.5, 1.0] * 2
    assert [f"steps/{bad}.csv" in problem for problem in problems] == [True]
