"""A ring against every arrangement of servers, on equal work, launch by launch."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from bench import records
from bench.records import RunRecord
from bench.report import duels
from tests.support.synthetic import demo_records, make_record, make_rejected

ARMS = {"ring": "ring_allreduce", "server": "parameter_server"}


def arm(name: str, speeds: list[float], **config: Any) -> list[RunRecord]:
    config = {"strategy": ARMS[name], "num_workers": 2, **config}
    return [make_record(repeat=r, tokens_per_s=speed, **config) for r, speed in enumerate(speeds)]


def fight(*runs: list[RunRecord]) -> pd.DataFrame:
    return duels.duels(records.frame([run for of_cell in runs for run in of_cell]))


@pytest.mark.parametrize(
    ("ring", "server", "verdict"),
    [
        ([20.0, 21.0, 20.0], [10.0, 11.0, 10.0], "ring"),
        ([10.0, 11.0, 10.0], [20.0, 21.0, 20.0], "server"),
        ([10.0, 11.0, 12.0], [10.0, 11.0, 12.0], "equivalent"),
        ([10.0, 12.0, 13.0], [11.0, 11.0, 11.0], "undecided"),
        ([20.0, 20.0], [10.0, 10.0], "no verdict"),
    ],
)
def test_a_verdict_names_the_faster_side(ring: list[float], server: list[float], verdict: str) -> None:
    assert list(fight(arm("ring", ring), arm("server", server))["verdict"]) == [verdict]


def rejected(name: str, speeds: list[float], first: int = 0, attempt: int = 0, **values: Any) -> list[RunRecord]:
    config = {"strategy": ARMS[name], "num_workers": 2, **values}
    made = [make_rejected(speed, repeat=r, **config) for r, speed in enumerate(speeds, start=first)]
    return [run.model_copy(update={"attempt": attempt}) for run in made]


def test_a_verdict_that_rejected_launches_change_is_fragile() -> None:
    ring, slow = arm("ring", [10.0, 10.1, 10.2, 10.0]), rejected("server", [5.0], first=3)
    (duel,) = fight(ring, arm("server", [10.0, 10.1, 10.2]), slow).to_dict("records")
    assert (duel["verdict"], duel["verdict_with_rejected"], duel["fragile"]) == ("equivalent", "undecided", True)
    assert (duel["n"], duel["rejected"], duel["basis"]) == (3, 1, "accepted")
    (duel,) = fight(ring, arm("server", [10.0, 10.1, 10.2, 10.0])).to_dict("records")
    assert (duel["verdict_with_rejected"], duel["fragile"], duel["rejected"]) == ("equivalent", False, 0)
    (duel,) = fight(ring, arm("server", [5.0, 5.1, 5.2]), slow).to_dict("records")
    assert (duel["verdict_with_rejected"], duel["fragile"], duel["rejected"]) == ("ring", False, 1)


def test_a_large_effect_shows_in_spite_of_a_small_disturbance() -> None:
    def meet(server: float, disturbance: float) -> tuple[str, str]:
        speeds = [server, 1.001 * server, 0.999 * server]
        arms = {"ring": [3.8, 3.8, 3.81], "server": speeds}
        table = fight(*(rejected(name, found, disturbance=disturbance) for name, found in arms.items()))
        assert list(table["basis"]) == ["with rejected"]
        return str(table["verdict"].iloc[0]), str(table["fragile"].iloc[0])

    assert meet(1.0, 0.05) == ("ring", "False")
    assert meet(1.0, 3.0) == ("undecided", "False")  # the disturbance alone may have done it
    assert meet(3.6, 0.0)[0] == "ring"
    assert meet(3.6, 0.05)[0] == "undecided"
    assert meet(3.8, 0.05)[0] == "undecided"  # nor can it be called equivalent


def test_one_disturbed_launch_of_several_counts_with_its_share() -> None:
    def limit(*disturbances: float) -> float:
        ring = [run for r, share in enumerate(disturbances) for run in rejected("ring", [10.0], r, disturbance=share)]
        server = rejected("server", [10.0] * len(disturbances), disturbance=0.0)
        found, _ = duels.Rejections(records.frame([*ring, *server])).compare(ring[0].cell, server[0].cell)
        return found.disturbance

    assert limit(0.5, 0.5, 0.5) == pytest.approx(0.5)
    assert limit(0.5, 0.0, 0.0) == pytest.approx(1.5 ** (1 / 3) - 1)  # what the mean log ratio may be off by
    assert limit(0.0, 0.0, 0.0) == 0


def test_a_cell_that_was_never_measured_has_no_ratio() -> None:
    (one,) = arm("ring", [10.0])
    found = duels.Rejections(records.frame([one])).compare(one.cell, "another")
    assert (found[0].n, found[1]["rejected"]) == (0, 0)


def test_a_replaced_launch_counts_with_its_replacement_among_all() -> None:
    (duel,) = fight(
        arm("ring", [10.0, 10.0, 10.0]),
        rejected("server", [5.0]),
        [run.model_copy(update={"attempt": int(run.repeat == 0)}) for run in arm("server", [10.0, 10.0, 10.0])],
    ).to_dict("records")
    assert (duel["n"], duel["ratio"]) == (3, pytest.approx(1.0))
    assert duel["ratio_with_rejected"] == pytest.approx((2**0.5) ** (1 / 3))


def test_topologies_that_share_no_repeat_do_not_meet() -> None:
    first, second = arm("ring", [10.0, 11.0])[:1], arm("server", [10.0, 11.0])[1:]
    assert fight(first, second).empty


def test_topologies_meet_at_every_common_size_and_on_equal_work_only() -> None:
    table = duels.duels(records.frame(demo_records()))
    assert len(table) == (3 + 1) * 4  # workers 1, 2 and 4, ranks 2, for two precisions and two batch sizes
    assert set(table.loc[table["equal"] == "ranks", "size"]) == {2}
    assert fight(arm("ring", [1.0], batch_size=4), arm("server", [1.0], batch_size=8)).empty


def test_a_pair_equal_in_nodes_and_in_workers_is_compared_once() -> None:
    table = fight(arm("ring", [1.0]), arm("server", [1.0], placement="colocated", num_servers=0))
    assert table[["equal", "size", "server_name"]].to_numpy().tolist() == [["ranks", 2, "colocated servers"]]


def test_one_rank_per_node_is_called_nodes() -> None:
    runs = [*arm("ring", [1.0], num_workers=3), *arm("server", [1.0])]
    spread = [run.model_copy(update={"summary": run.summary.model_copy(update={"num_nodes": 3})})
              for run in runs if run.summary]  # fmt: skip
    assert fight(spread)[["equal", "size"]].to_numpy().tolist() == [["nodes", 3]]


def test_several_comparisons_need_stronger_evidence() -> None:
    def one(batch_size: int) -> list[list[RunRecord]]:
        speeds = {"ring": [100.0, 110.0, 120.0], "server": [50.0, 50.0, 50.0]}
        return [arm(name, found, batch_size=batch_size) for name, found in speeds.items()]

    assert set(fight(*one(1))["verdict"]) == {"ring"}
    assert set(fight(*(runs for batch_size in range(1, 20) for runs in one(batch_size)))["verdict"]) == {"undecided"}


def test_emulated_nodes_are_not_compared_with_one_machine() -> None:
    emulated = arm("ring", [1.0, 2.0], labels=("emulated",))
    assert fight(emulated, arm("server", [1.0, 2.0])).empty
    assert len(fight(emulated, arm("server", [1.0, 2.0], labels=("emulated",)))) == 1


def test_every_arrangement_of_servers_is_compared_and_named() -> None:
    table = fight(
        arm("ring", [10.0]),
        arm("server", [5.0]),
        arm("server", [8.0], num_servers=2),
        arm("server", [9.0], placement="colocated", num_servers=0),
        arm("server", [9.0], placement="mixed", num_servers=1),
    )
    names = ["colocated servers", "colocated servers and one dedicated server", "one dedicated server",
             "2 dedicated servers"]  # fmt: skip
    assert list(table["server_name"]) == names
    assert set(table["ring_name"]) == {"Horovod's ring"}


def test_knobs_of_the_servers_that_vary_are_in_their_name() -> None:
    table = fight(arm("ring", [10.0]), *(arm("server", [5.0], chunk_bytes=n) for n in (4096, 8192)))
    assert sorted(table["server_name"]) == [f"one dedicated server, chunk_bytes {n}" for n in (4096, 8192)]


def test_horovods_ring_stands_for_the_rings_where_it_ran() -> None:
    slow, fast = arm("ring", [5.0]), arm("ring", [9.0], strategy="mpi_ring")
    only_ours = arm("ring", [9.0], strategy="mpi_ring", num_workers=4)
    table = fight(slow, fast, only_ours, arm("server", [1.0]), arm("server", [1.0], num_workers=4))
    assert dict(zip(table["size"], table["ring_name"], strict=True)) == {2: "Horovod's ring", 4: "the mpi4py ring"}


def test_another_precision_is_compared_with_its_twin_in_fp32() -> None:
    found = duels.precision_effects(records.frame([
        *arm("ring", [10.0, 20.0, 30.0]), *arm("ring", [5.0, 10.0, 15.0], precision="bf16"),
        *arm("ring", [1.0], precision="bf16", batch_size=4),
    ]))  # fmt: skip
    assert found[["precision", "ratio", "verdict"]].to_numpy().tolist() == [["bf16", pytest.approx(0.5), "slower"]]
