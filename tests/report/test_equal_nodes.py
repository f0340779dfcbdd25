"""The table of the four figures: rows of equal size, per step, the fastest first."""

from __future__ import annotations

import pandas as pd

from bench.records import frame
from bench.report.cells import summarize
from bench.report.equal_nodes import rows_at_equal_nodes
from tests.support.synthetic import make_record


def table(*cells: dict[str, object]) -> pd.DataFrame:
    return summarize(frame([make_record(**cell) for cell in cells]))


def test_rows_have_the_largest_size_that_most_strategies_share() -> None:
    ring = [{"strategy": "ring_allreduce", "num_workers": n} for n in (2, 4, 8)]
    server = [{"strategy": "parameter_server", "num_workers": n - 1, "num_servers": 1} for n in (2, 4)]
    summary = table({"strategy": "local"}, *ring, *server)
    rows = rows_at_equal_nodes(summary, dict.fromkeys(summary["cell"], 10))
    assert [row["world_size"] for row in rows] == [4, 4]
    assert {row["strategy"] for row in rows} == {"ring_allreduce", "parameter_server"}
    assert [row["tokens_per_s"] for row in rows] == sorted((row["tokens_per_s"] for row in rows), reverse=True)
    for row in rows:
        assert row["worker_cpu_per_step_s"] == row["worker_cpu_s"] / 10


def test_settings_are_not_mixed_and_one_strategy_alone_is_no_comparison() -> None:
    summary = table(
        {"strategy": "ring_allreduce", "num_workers": 2}, {"strategy": "ring_allreduce", "num_workers": 4},
        {"strategy": "mpi_ring", "num_workers": 2, "precision": "bf16"},
    )  # fmt: skip
    assert list(rows_at_equal_nodes(summary, dict.fromkeys(summary["cell"], 1))) == []
    failed = summary.assign(status="failed")
    assert list(rows_at_equal_nodes(failed, {})) == []


def test_copies_on_several_nodes_stand_beside_data_parallelism_with_as_many_sequences_per_node() -> None:
    summary = table(
        {"strategy": "ddp", "num_workers": 2, "batch_size": 8},
        {"strategy": "pipeline", "num_workers": 2, "batch_size": 16},
        {"strategy": "pipeline", "num_workers": 2, "batch_size": 8, "num_micro_batches": 4},
    )  # fmt: skip
    rows = rows_at_equal_nodes(summary, dict.fromkeys(summary["cell"], 1))
    assert {(row["strategy"], row["batch_size"]) for row in rows} == {("ddp", 8), ("pipeline", 16)}


def test_memory_is_compared_with_that_of_ddp_unless_layers_slept() -> None:
    asleep = {"compute": "emulated", "emulated_forward_s": 0.1, "emulated_backward_s": 0.2}
    for values, ratio in (({}, 0.5), (asleep, None)):
        summary = table(*({"strategy": name, "num_workers": 4, **values} for name in ("ddp", "fsdp")))
        summary.loc[summary["strategy"] == "fsdp", "worker_peak_memory_bytes"] /= 2
        rows = rows_at_equal_nodes(summary, dict.fromkeys(summary["cell"], 1))
        found = {row["strategy"]: row["memory_ratio"] for row in rows}
        assert found["ddp"] == 1 if ratio else pd.isna(found["ddp"])
        assert found["fsdp"] == ratio if ratio else pd.isna(found["fsdp"])
