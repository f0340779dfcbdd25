"""Ring against server: on equal work, launch by launch, with ties called ties."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import records
from bench.records import RunRecord
from bench.report import answer, duels
from tests.support.synthetic import demo_records, make_record

ARMS = {"ring": "ring_allreduce", "server": "parameter_server"}


def arm(name: str, speeds: list[float], **config: Any) -> list[RunRecord]:
    config = {"strategy": ARMS[name], "num_workers": 2, **config}
    return [make_record(repeat=r, tokens_per_s=speed, **config) for r, speed in enumerate(speeds)]


def fight(*runs: list[RunRecord]) -> pd.DataFrame:
    return duels.duels(records.frame([run for of_cell in runs for run in of_cell]))


@pytest.mark.parametrize(
    ("ring", "server", "verdict"),
    [
        ([20.0, 21.0], [10.0, 11.0], "ring"),
        ([10.0, 11.0], [20.0, 21.0], "server"),
        ([10.0, 12.0], [11.0, 11.0], "tie"),
        ([20.0], [10.0, 10.0], "unknown"),
    ],
)
def test_a_verdict_needs_an_interval_without_one(ring: list[float], server: list[float], verdict: str) -> None:
    assert list(fight(arm("ring", ring), arm("server", server))["verdict"]) == [verdict]


def test_launches_are_compared_in_pairs_so_that_drift_cancels() -> None:
    drift = [1.0, 3.0, 0.5, 2.0, 9.0]
    row = fight(arm("ring", [12 * d for d in drift]), arm("server", [10 * d for d in drift])).iloc[0]
    assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == pytest.approx((1.2, 1.2, 1.2))


def test_topologies_that_share_no_repeat_do_not_meet() -> None:
    first, second = arm("ring", [10.0, 11.0])[:1], arm("server", [10.0, 11.0])[1:]
    assert fight(first, second).empty


def test_swapping_the_arms_turns_the_ratio() -> None:
    there, back = (
        fight(arm("ring", ring), arm("server", server)).iloc[0]
        for ring, server in ([[20.0, 24.0, 19.0], [10.0, 11.0, 9.0]], [[10.0, 11.0, 9.0], [20.0, 24.0, 19.0]])
    )
    assert there["ratio"] == pytest.approx(1 / back["ratio"])
    assert there["ratio_low"] == pytest.approx(1 / back["ratio_high"])


def test_topologies_meet_at_every_common_size_and_on_equal_work_only() -> None:
    table = duels.duels(records.frame(demo_records()))
    assert len(table) == (3 + 1) * 4  # workers 1, 2 and 4, ranks 2, for two precisions and two batch sizes
    assert set(table.loc[table["equal"] == "ranks", "size"]) == {2}
    assert fight(arm("ring", [1.0], batch_size=4), arm("server", [1.0], batch_size=8)).empty


def test_emulated_nodes_are_not_compared_with_one_machine() -> None:
    emulated = arm("ring", [1.0, 2.0], labels=("emulated",))
    assert fight(emulated, arm("server", [1.0, 2.0])).empty
    assert len(fight(emulated, arm("server", [1.0, 2.0], labels=("emulated",)))) == 1


def test_a_setting_is_named_in_words_whatever_the_other_place_leaves_blank() -> None:
    nodes = {
        "labels": ("emulated",),
        "link": "200mbit",
        "compute": "emulated",
        "emulated_forward_s": 0.1,
        "emulated_backward_s": 0.2,
    }
    found = fight(*(arm(name, [1.0, 2.0], **more) for name in ARMS for more in ({}, nodes)))
    expected = [f"{place}, fp32, 8 sequences per worker" for place in ("emulated nodes", "one machine")]
    assert sorted(answer.settings_of(found)) == expected


def test_of_several_cells_the_fastest_stands_for_its_topology() -> None:
    table = fight(arm("ring", [10.0]), arm("server", [5.0]), arm("server", [8.0], num_servers=2))
    assert table.loc[table["equal"] == "workers", ["num_servers", "ratio"]].to_numpy().tolist() == [[2, 1.25]]


@settings(max_examples=20)
@given(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=6))
def test_the_winner_at_the_end_wins_from_its_crossover_on_and_not_before(ratios: list[float]) -> None:
    runs = []
    for place, ratio in enumerate(ratios):
        wiggle = [0.99, 1.01] if ratio == 1.0 else [1.0, 1.0]
        runs.append(arm("ring", [100.0 * ratio * w for w in wiggle], num_workers=2**place))
        runs.append(arm("server", [100.0] * 2, num_workers=2**place))
    table = fight(*runs)
    table = table[table["equal"] == "workers"]
    found = duels.crossovers(table).iloc[0]
    by_size = table.set_index("size")["verdict"]
    assert found["verdict"] == by_size[by_size.index.max()]
    assert (by_size[by_size.index >= found["from_size"]] == found["verdict"]).all()
    before = by_size[by_size.index < found["from_size"]]
    assert before.empty or before.iloc[-1] != found["verdict"]


def test_another_precision_is_compared_with_its_twin_in_fp32() -> None:
    found = duels.precision_effects(records.frame([
        *arm("ring", [10.0, 20.0]), *arm("ring", [5.0, 10.0], precision="bf16"),
        *arm("ring", [1.0], precision="bf16", batch_size=4),
    ]))  # fmt: skip
    assert found[["precision", "ratio", "verdict"]].to_numpy().tolist() == [["bf16", pytest.approx(0.5), "slower"]]
