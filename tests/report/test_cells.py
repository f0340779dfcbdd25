"""Laws of medians, intervals, speedup and efficiency; no example is pinned to a measured number."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import records
from bench.config import BadInput, RunConfig
from bench.records import RunRecord
from bench.report import cells, duels
from tests.support.synthetic import demo_records, make_failure, make_record


@pytest.fixture(scope="module")
def demo() -> pd.DataFrame:
    return records.frame(demo_records())


@pytest.fixture(scope="module")
def demo_summary(demo: pd.DataFrame) -> pd.DataFrame:
    return cells.summarize(demo)


def runs_of(speeds: list[float], **config: Any) -> list[RunRecord]:
    return [make_record(repeat=i, tokens_per_s=speed, **config) for i, speed in enumerate(speeds)]


def summarize(*runs: RunRecord) -> pd.DataFrame:
    return cells.summarize(records.frame(runs))


def only(table: pd.DataFrame, **where: Any) -> pd.Series:
    rows = table
    for column, value in where.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def test_one_launch_has_no_spread() -> None:
    row = summarize(make_record()).iloc[0]
    assert row["n"] == 1
    blank = [name for name in row.index if name.endswith(("_low", "_high"))]
    assert blank
    assert row[blank].isna().all()


@pytest.mark.parametrize("n", [1, 4, 5, 6])
def test_few_launches_are_labelled(n: int) -> None:
    row = summarize(*runs_of([100.0] * n)).iloc[0]
    assert ("few_launches" in row["labels"].split()) == (n < 5)


def test_the_order_of_rows_does_not_matter(demo: pd.DataFrame, demo_summary: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(cells.summarize(demo.iloc[::-1]), demo_summary)


def test_every_cell_has_one_row(demo: pd.DataFrame, demo_summary: pd.DataFrame) -> None:
    assert sorted(demo_summary["cell"]) == sorted(set(demo["cell"]))


def test_the_columns_of_the_design_are_there(demo_summary: pd.DataFrame) -> None:
    design = """strategy consistency num_workers num_servers num_nodes model precision wire_dtype batch_size compute
        n tokens_per_s tokens_per_s_low tokens_per_s_high step_s step_s_p95 exposed_communication_s overlap_fraction
        bytes_sent_per_worker_per_step bytes_sent_per_worker_per_step_predicted bytes_sent_per_worker_per_step_wire
        num_parameters scaling_efficiency scaling_efficiency_per_node baseline final_loss status labels"""
    assert set(design.split()) <= set(demo_summary.columns)


def test_a_baseline_is_its_own_measure(demo_summary: pd.DataFrame) -> None:
    local = demo_summary[demo_summary["strategy"] == "local"]
    assert (local[["speedup", "scaling_efficiency", "scaling_efficiency_per_node"]] == 1).all(axis=None)
    assert local[["speedup_low", "scaling_efficiency_high"]].isna().all(axis=None)  # there is no chance in it


def test_efficiency_per_rank_is_at_most_per_worker(demo_summary: pd.DataFrame) -> None:
    known = demo_summary[demo_summary["scaling_efficiency"].notna()]
    equal = known["scaling_efficiency_per_node"] == known["scaling_efficiency"]
    assert (known["scaling_efficiency_per_node"] <= known["scaling_efficiency"]).all()
    assert (equal == (known["num_servers"] == 0)).all()


def test_efficiency_is_throughput_over_workers_times_the_local_baseline() -> None:
    server = runs_of([150.0] * 2, strategy="parameter_server", num_workers=2, wire_dtype="fp16")
    row = only(summarize(*runs_of([100.0] * 2), *server), strategy="parameter_server")
    assert row["baseline"] == "local"  # wire_dtype is nothing to a lone process
    assert (row["speedup"], row["scaling_efficiency"], row["scaling_efficiency_per_node"]) == (1.5, 0.75, 0.5)


@pytest.mark.parametrize(
    "other", [{"precision": "bf16"}, {"batch_size": 4}, {"n_layer": 4}, {"num_threads": 2}, {"clip_norm": 1.0}]
)
def test_another_work_is_no_baseline(other: dict[str, Any]) -> None:
    table = summarize(make_record(**other), make_record(strategy="ring_allreduce", num_workers=2))
    row = only(table, strategy="ring_allreduce")
    assert row["baseline"] == ""
    assert math.isnan(row["scaling_efficiency"])


def test_without_local_one_worker_of_the_same_stack_is_the_baseline() -> None:
    one = make_record(strategy="parameter_server", num_workers=1, tokens_per_s=100.0)
    two = make_record(strategy="parameter_server", num_workers=2, tokens_per_s=180.0)
    more = make_record(strategy="parameter_server", num_workers=2, num_servers=2)
    table = summarize(one, two, more)
    assert set(table["baseline"]) == {"1 worker of parameter_server", ""}
    assert only(table, num_workers=2, num_servers=1)["scaling_efficiency"] == pytest.approx(0.9)
    assert only(table, num_servers=2)["baseline"] == ""  # another number of servers is another stack


def test_of_several_baselines_the_likest_counts() -> None:
    short, long = make_record(steps=10, tokens_per_s=100.0), make_record(steps=20, tokens_per_s=200.0)
    rings = [make_record(strategy="ring_allreduce", num_workers=2, steps=n, tokens_per_s=400.0) for n in (10, 20)]
    table = summarize(short, long, *rings)
    speedups = sorted(table["speedup"])
    assert speedups == [1.0, 1.0, 2.0, 4.0]  # both local cells are their own baseline


def test_uneven_workers_scale_from_the_even_one_and_are_compared_with_their_like() -> None:
    slept = {"compute": "emulated", "emulated_forward_s": 0.1, "emulated_backward_s": 0.2}
    uneven = {**slept, "num_workers": 2, "speed_factor": "1=0.5"}
    even = make_record(**slept, tokens_per_s=100.0)
    pair = [make_record(strategy=name, tokens_per_s=120.0, **uneven) for name in ("ring_allreduce", "parameter_server")]
    table = summarize(even, *pair)
    assert only(table, strategy="ring_allreduce")["speedup"] == pytest.approx(1.2)
    assert only(table, strategy="ring_allreduce")["baseline"] == "local"
    faster = make_record(strategy="parameter_server", tokens_per_s=200.0, **{**slept, "num_workers": 2})
    assert list(duels.duels(records.frame([*pair, faster]))["ratio"]) == [1.0]


@settings(max_examples=15)
@given(st.integers(2, 8), st.floats(0.1, 10))
def test_strong_scaling_compares_at_equal_global_batch(workers: int, ratio: float) -> None:
    alone = make_record(batch_size=2 * workers, tokens_per_s=100.0)
    weak = make_record(batch_size=2, tokens_per_s=50.0)
    ring = make_record(strategy="ring_allreduce", num_workers=workers, batch_size=2, tokens_per_s=100.0 * ratio)
    row = only(summarize(alone, weak, ring), strategy="ring_allreduce")
    assert (row["strong_baseline"], row["baseline"]) == ("local", "local")
    assert row["strong_speedup"] == pytest.approx(ratio)
    assert row["speedup"] == pytest.approx(2 * ratio)
    assert row["strong_scaling_efficiency"] == pytest.approx(ratio / workers)


def test_strong_and_weak_scaling_are_the_same_for_one_worker(demo_summary: pd.DataFrame) -> None:
    alone = demo_summary[(demo_summary["num_workers"] == 1) & (demo_summary["n"] > 0)]
    assert (alone["strong_speedup"] == alone["speedup"]).all()


def test_without_the_global_batch_alone_there_is_no_strong_scaling() -> None:
    row = only(summarize(make_record(), make_record(strategy="ddp", num_workers=3)), strategy="ddp")
    assert row["strong_baseline"] == ""
    assert math.isnan(row["strong_speedup"])


def test_a_failed_baseline_is_no_baseline() -> None:
    table = summarize(make_failure("failed", "no core"), make_record(strategy="ring_allreduce", num_workers=2))
    assert only(table, strategy="ring_allreduce")["baseline"] == ""


def test_a_failed_cell_keeps_its_row_its_reason_and_no_number() -> None:
    row = only(summarize(make_record(), make_failure("timeout", "no step", batch_size=4)), batch_size=4)
    assert (row["n"], row["status"], row["reason"]) == (0, "timeout", "no step")
    assert row[["tokens_per_s", "step_s", "final_loss", "num_nodes", "scaling_efficiency"]].isna().all()


def test_a_lost_launch_is_counted_in_the_reason() -> None:
    row = summarize(make_record(), make_record(repeat=1), make_failure("failed", "killed", repeat=2)).iloc[0]
    assert (row["n"], row["status"]) == (2, "ok")
    assert row["reason"] == "1 of 3 launches failed: failed: killed"


def test_a_folder_of_failures_is_still_a_table() -> None:
    table = summarize(make_failure("failed", "killed"), make_failure("unsupported", "never", batch_size=4))
    assert sorted(table["status"]) == ["failed", "unsupported"]


def test_labels_are_those_of_all_launches() -> None:
    table = summarize(make_record(labels=("loopback",)), make_record(repeat=1, labels=("oversubscribed",)))
    assert table["labels"].iloc[0].split() == ["few_launches", "loopback", "oversubscribed"]


def test_one_leaking_launch_fails_the_gate_of_its_cell() -> None:
    good, bad = runs_of([1.0, 1.0], strategy="ring_allreduce", num_workers=2)
    assert bad.summary is not None
    bad = bad.model_copy(update={"summary": bad.summary.model_copy(update={"equivalence_error": 1.0})})
    row = summarize(good, bad).iloc[0]
    assert row["status"] == "invalid"  # its other launch trained the same wrong thing
    assert row["n"] == 0
    assert duels.duels(records.frame([good, bad])).empty


def test_an_invalid_launch_that_the_gate_did_not_see_speaks_for_itself_alone() -> None:
    good, other, guarded = runs_of([1.0, 2.0, 3.0], strategy="ring_allreduce", num_workers=2)
    assert guarded.summary is not None
    unchecked = guarded.summary.model_copy(update={"equivalence_error": None, "equivalence_bound": None})
    update = {"status": "invalid", "reason": "the machine was the bottleneck", "summary": unchecked}
    row = summarize(good, other, guarded.model_copy(update=update)).iloc[0]
    assert (row["status"], row["n"], row["tokens_per_s"]) == ("ok", 2, 1.5)
    assert "the machine was the bottleneck" in row["reason"]


@pytest.mark.parametrize("gate_passed", [True, None])  # older results do not say it
def test_a_launch_that_passed_the_gate_and_failed_another_check_speaks_for_itself_alone(
    gate_passed: bool | None,
) -> None:
    checked, *others = runs_of([1.0, 2.0, 3.0], strategy="ring_allreduce", num_workers=2)
    assert checked.summary is not None
    update = {
        "status": "invalid", "reason": "the machine was the bottleneck",
        "summary": checked.summary.model_copy(update={"gate_passed": gate_passed}),
    }  # fmt: skip
    row = summarize(checked.model_copy(update=update), *others).iloc[0]
    assert (row["status"], row["n"], row["tokens_per_s"]) == ("ok", 2, 2.5)
    assert "the machine was the bottleneck" in row["reason"]


@pytest.mark.parametrize(
    ("reason", "summary"),
    [
        ("it trained another model", {"gate_passed": False}),
        ("the workers ended with 2 different models", {}),
        ("its held-out loss fell 0.5 times as far", {"equivalence_error": None, "convergence": 0.5}),
    ],
)
def test_whatever_fails_the_gate_fails_its_cell(reason: str, summary: dict[str, Any]) -> None:
    checked, *others = runs_of([1.0, 2.0, 3.0], strategy="ring_allreduce", num_workers=2)
    assert checked.summary is not None
    update = {"status": "invalid", "reason": reason, "summary": checked.summary.model_copy(update=summary)}
    row = summarize(checked.model_copy(update=update), *others).iloc[0]
    assert (row["status"], row["n"], row["reason"]) == ("invalid", 0, reason)


def test_environments_are_mixed_only_when_asked() -> None:
    runs = records.frame([make_record(environment="e0"), make_record(repeat=1, environment="e1")])
    with pytest.raises(BadInput, match=r"2 environments \(e0, e1\).*--allow-mixed"):
        cells.summarize(runs)
    assert cells.summarize(runs, allow_mixed=True)["environment"].iloc[0] == "e0 e1"


def test_no_run_is_bad_input() -> None:
    with pytest.raises(BadInput, match="no run"):
        cells.summarize(records.frame([]))


def test_knobs_that_vary_are_columns_in_the_order_of_the_config() -> None:
    table = summarize(make_record(), make_record(seed=1), make_record(chunk_bytes=4096))
    extra = [name for name in table.columns if name in ("seed", "chunk_bytes", "learning_rate")]
    assert extra == [name for name in RunConfig.model_fields if name in ("seed", "chunk_bytes")]


def test_a_cell_knows_where_its_messages_went() -> None:
    table = summarize(
        make_record(strategy="ddp", num_workers=2, labels=("emulated",)),
        make_record(strategy="ddp", num_workers=4, labels=("loopback",)),
        make_failure("failed", "killed", strategy="ddp", num_workers=8),
    )
    assert list(table["place"]) == ["emulated nodes", "one machine", ""]


def test_rows_are_in_reading_order(demo_summary: pd.DataFrame) -> None:
    first = demo_summary[(demo_summary["precision"] == "fp32") & (demo_summary["batch_size"] == 4)]
    assert list(demo_summary["precision"].unique()) == ["fp32", "bf16"]
    assert list(first["strategy"].unique()) == ["local", "parameter_server", "ring_allreduce", "mpi_ring", "ddp"]
    for _, curve in first.groupby("strategy"):
        assert all(a < b for a, b in pairwise(curve["num_workers"]))
