"""The limits of a report's cells: known where the links are, of the measured phases where compute is real."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from bench import records
from bench.report import bounds, cells
from tests.support.synthetic import make_record

NODES: dict[str, Any] = {
    "link": "200mbit", "compute": "emulated", "emulated_forward_s": 0.1, "emulated_backward_s": 0.2,
    "model": "gpt-micro",
}  # fmt: skip


def columns_of(*runs: records.RunRecord) -> pd.DataFrame:
    summary = cells.summarize(records.frame(runs))
    return bounds.Bounds(summary, {run.cell: run.config for run in runs}).added_to(summary)


def test_where_the_links_are_not_known_nothing_is_claimed() -> None:
    unknown = columns_of(make_record(strategy="ring_allreduce", num_workers=2))
    assert unknown[list(bounds.COLUMNS)].isna().all(axis=None)
    assert list(unknown["bounded_by"]) == [""]
    tree = make_record(strategy="ring_allreduce", num_workers=2, **NODES)
    assert tree.summary is not None
    tree = tree.model_copy(update={"summary": tree.summary.model_copy(update={"allreduce_algorithm": "not_ring"})})
    assert columns_of(tree)["min_step_s"].isna().all()


def test_real_compute_is_bounded_by_its_measured_phases() -> None:
    run = make_record(strategy="ring_allreduce", num_workers=2, link="1gbit")
    assert run.summary is not None
    found = columns_of(run).iloc[0]
    measured = run.summary.forward_s + run.summary.backward_s + run.summary.optimizer_s
    assert found["compute_s"] == pytest.approx(measured)
