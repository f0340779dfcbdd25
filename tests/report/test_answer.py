"""The answer is the right sentence: synthetic studies whose answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import cli, records
from bench.config import RunConfig
from bench.records import RunRecord
from bench.report import answer, bounds, cells, conclusions, duels, loss, sentences, write
from tests.support.synthetic import make_failure, make_record, make_rejected

RINGS: dict[str, Any] = {"strategy": "ring_allreduce"}
COLOCATED: dict[str, Any] = {"strategy": "parameter_server", "placement": "colocated", "num_servers": 0}
ONE_SERVER: dict[str, Any] = {"strategy": "parameter_server", "num_servers": 1}
SLEPT: dict[str, Any] = {
    "compute": "emulated",
    "emulated_forward_s": 0.1,
    "emulated_backward_s": 0.2,
    "emulated_optimizer_s": 0.0,
}
NODES: dict[str, Any] = {"model": "gpt-micro", "link": "200mbit", "labels": ("emulated",), **SLEPT}
NOTHING = "No answer: no "


def arm(num_workers: int, speeds: Sequence[float], **config: Any) -> list[RunRecord]:
    """Launches of one cell; with a link on as many nodes as ranks."""
    runs = [make_record(num_workers=num_workers, repeat=r, tokens_per_s=v, **config) for r, v in enumerate(speeds)]
    if "link" not in config:
        return runs
    return [
        run.model_copy(update={"summary": run.summary.model_copy(update={"num_nodes": run.config.world_size})})
        for run in runs
        if run.summary
    ]


def answer_of(*cells_of: Sequence[RunRecord], margin: float = 0.02) -> answer.Answer:
    runs = [run for cell in cells_of for run in cell]
    table = records.frame(runs)
    losses = pd.DataFrame(columns=["run_id", "cell", "step", "elapsed_s", "loss"])
    summary = loss.add_costs(cells.summarize(table), table, losses)
    limits = bounds.Bounds(summary, {run.cell: run.config for run in runs})
    summary, measured = limits.added_to(summary), write.with_disturbed(table, summary, losses)
    return answer.answer(duels.duels(table, margin), summary, margin, limits, measured=measured)


def line(found: answer.Answer, title: str) -> str:
    return dict(found.lines)[title]


SPREAD = [99.0, 100.0, 101.0]


@pytest.mark.parametrize(
    ("ring", "servers", "sentence"),
    [
        ([100.0] * 3, [100.0, 100.2, 100.1],
         "At 2 ranks use Horovod's ring or colocated servers: they are equivalent (within 2 %)."),
        ([100.0] * 3, [112.0, 112.0, 112.0],
         "At 2 ranks use colocated servers: they train faster than Horovod's ring, by 12.0 %."),
        ([200.0] * 3, [100.0] * 3,
         "At 2 ranks use Horovod's ring. Colocated servers are 2.00× slower than Horovod's ring at 2 ranks."),
        ([90.0, 110.0, 100.0], [100.0] * 3,
         "At 2 ranks use Horovod's ring or colocated servers: which is faster is not decided (ring ÷ servers 0.997 "
         "(0.777–1.279))."),
        ([101.0, 100.0], [100.0, 100.0],
         "At 2 ranks use Horovod's ring or colocated servers: which is faster is not decided (ring ÷ servers 1.005 "
         "(1.000–1.010); 2 of at least 3 pairs of launches at 2 ranks)."),
        ([200.0, 210.0], [100.0, 100.0],
         "At 2 ranks Horovod's ring is ahead so far, without a verdict (2 of at least 3 pairs of launches at 2 ranks). "
         "Colocated servers are so far 2.05× slower than Horovod's ring at 2 ranks."),
    ],
)  # fmt: skip
def test_the_first_sentence_says_what_to_use(ring: list[float], servers: list[float], sentence: str) -> None:
    assert answer_of(arm(2, ring, **RINGS), arm(2, servers, **COLOCATED)).headline == sentence


def topology(link: str = "200mbit", **more: Any) -> list[list[RunRecord]]:
    """What the committed study should have found: tokens/s of 3 launches per cell on up to 8 nodes."""
    nodes = {**NODES, "link": link, **more}
    rates = {2: 6500.0, 4: 12300.0, 8: 22000.0}
    even = [
        arm(n, [rate, rate * 1.001, rate], **kind, **nodes) for n, rate in rates.items() for kind in (RINGS, COLOCATED)
    ]
    one = [arm(n - 1, [rate] * 3, **ONE_SERVER, **nodes) for n, rate in {2: 3240.0, 4: 5580.0, 8: 6170.0}.items()]
    four = arm(4, [12300 * 1.04] * 3, strategy="parameter_server", num_servers=4, **nodes)
    return [*even, *one, four, arm(1, [3400.0] * 3, strategy="local", **nodes)]


def test_the_headline_of_the_committed_study() -> None:
    found = answer_of(*topology())
    assert found.headline == (
        "On emulated nodes: At 2, 4 and 8 nodes use Horovod's ring or colocated servers: they are equivalent (within "
        "2 %). One dedicated server is 3.57× slower than Horovod's ring at 8 nodes: its link is the bottleneck from 3 "
        "workers on. 4 workers + 4 servers are 1.72× slower than Horovod's ring at 8 nodes: only 4 of the 8 nodes "
        "train. 4 workers + 4 servers train 4.0 % faster than Horovod's ring of 4 but take 8 nodes."
    )


def test_the_paragraphs_of_the_committed_study() -> None:
    found = answer_of(*topology())
    assert line(found, "What bounds it").startswith(
        "At 8 nodes: Horovod's ring: bounded by computing (300 ms, and 67.3 ms of communication that it cannot hide); "
        "a step takes "
    )
    alone = "bounded by the server's link (987 ms, and 30.7 ms of waiting for gradients); a step takes "
    assert f"One dedicated server: {alone}" in line(found, "What bounds it")
    assert line(found, "Where one dedicated server stops scaling") == (
        "From 3 workers on its link is the bottleneck: every worker's payload takes it 141 ms a step, computing takes "
        "300 ms. However many workers follow, 7,270 tokens/s is the limit. Measured, in tokens/s: 3,240 with 1 worker, "
        "5,580 with 3 workers and 6,170 with 7 workers (85 % of the limit)."
    )
    assert line(found, "Worth distributing").startswith("Yes. Speed relative to one process: Horovod's ring 6.47× (")
    assert "M = 3.37 MB a copy; fp32" in line(found, "Measured with")
    assert "link 200mbit" in line(found, "Measured with")
    assert "emulated computing, 300 ms a step; 2, 4 and 8 nodes" in line(found, "Measured with")


def test_what_turns_the_order_round_follows_from_the_limits_and_agrees_with_them() -> None:
    found = answer_of(*topology())
    said = line(found, "What would turn it round")
    assert "No link rate changes the order of Horovod's ring and one dedicated server at 8 nodes" in said
    assert "14.4 % faster if links took no time" in said  # 8 workers of 7
    assert "4 workers + 4 servers and Horovod's ring are equivalent at 4 workers" in said
    assert "links are 1." in said
    against = answer_of(*topology(link="20gbit"))  # a ring would not be 3.6 times as fast there
    assert "one dedicated server" not in dict(against.lines).get("What would turn it round", "")


def test_without_a_link_no_bound_is_claimed() -> None:
    found = answer_of(arm(2, [200.0] * 3, **RINGS), arm(2, [100.0] * 3, **COLOCATED))
    assert line(found, "What bounds it") == "There is no link: messages cross this machine's memory."
    assert "M/(B·T) not known" in line(found, "Measured with")
    assert "What would turn it round" not in dict(found.lines)
    several = [[run.model_copy(update={"summary": run.summary.model_copy(update={"num_nodes": 2})})
                for run in arm(2, [rate] * 3, **kind) if run.summary]
               for rate, kind in ((200.0, RINGS), (100.0, COLOCATED))]  # fmt: skip
    network = answer_of(*several)
    assert network.headline.startswith("On a network: At 2 nodes use Horovod's ring.")
    assert "not known to psring" in line(network, "What bounds it")
    assert "link not known" in line(network, "Measured with")


def test_without_computing_the_links_alone_are_the_bound() -> None:
    nodes = {"model": "gpt-micro", "link": "200mbit", "labels": ("emulated",), "compute": "none"}
    found = answer_of(arm(4, [900.0] * 3, **RINGS, **nodes), arm(3, [300.0] * 3, **ONE_SERVER, **nodes))
    assert "its link is the bottleneck from 1 worker on" in found.headline
    assert "bounded by each worker's link (211 ms); a step takes " in line(found, "What bounds it")
    assert "no computing" in line(found, "Measured with")


def test_at_equal_workers_only_a_dedicated_server_is_an_extra_rank() -> None:
    ring = arm(2, [150.0] * 3, **RINGS)
    servers = arm(2, [100.0] * 3, **ONE_SERVER, labels=("loopback", "oversubscribed"))
    found = answer_of(ring, servers)
    assert found.headline == (
        "At 2 workers use Horovod's ring. One dedicated server is 1.50× slower than Horovod's ring at 2 workers (3 "
        "ranks instead of 2) (oversubscribed: only the servers)."
    )
    assert found.table.rows[0][-1] == "oversubscribed (servers)"
    both = answer_of(arm(2, [150.0] * 3, **RINGS, labels=("oversubscribed",)), servers)
    assert both.table.rows[0][-1] == "oversubscribed"
    assert "only the servers" not in both.headline


def test_rejected_launches_are_counted_in_their_row_and_a_fragile_verdict_is_called_so() -> None:
    ring = arm(2, [110.0] * 3, **RINGS)
    slow = [make_rejected(90.0 + r, num_workers=2, repeat=r, **RINGS) for r in (3, 4, 5)]
    found = answer_of([*ring, *slow], arm(2, [100.0] * 6, **COLOCATED))
    assert found.headline == (
        "At 2 ranks use Horovod's ring. Colocated servers are 10.0 % slower than Horovod's ring at 2 ranks (fragile: "
        "undecided with rejected launches)."
    )
    row = dict(zip(found.table.head, found.table.rows[0], strict=True))
    assert (row["verdict"], row["rejected"]) == ("ring faster (fragile)", "3, left out")
    only = [make_rejected(200.0, num_workers=2, repeat=r, **RINGS) for r in range(3)]
    found = answer_of(only, arm(2, [100.0] * 3, **COLOCATED))
    assert found.headline.startswith("At 2 ranks use Horovod's ring. Colocated servers are 2.00× slower")
    assert found.table.rows[0][found.table.head.index("rejected")] == "3, included"
    nodes = {"num_workers": 2, **NODES}
    none_accepted = [[make_rejected(200.0, repeat=r, **kind, **nodes) for r in range(3)] for kind in (RINGS, COLOCATED)]
    found = answer_of(*none_accepted)
    assert "equivalent" in found.headline or "not decided" in found.headline
    assert "emulated computing, 300 ms a step" in line(found, "Measured with")


def test_with_disturbed_launches_alone_the_headline_says_so_and_a_large_effect_shows() -> None:
    """All that is known of a cell is said, and by how much others may have slowed it."""
    speeds = {"ring_allreduce": 380.0, "parameter_server": 100.0}

    def study(disturbance: float) -> answer.Answer:
        return answer_of(*(
            [make_rejected(speeds[kind["strategy"]] + r, disturbance, repeat=r, num_workers=workers, **kind, **NODES)
             for r in range(3)]
            for kind, workers in ((RINGS, 4), (ONE_SERVER, 3))
        ))  # fmt: skip

    slightly, much = study(0.05), study(4.0)
    assert "One dedicated server is 3.77× slower than Horovod's ring" in slightly.headline
    assert slightly.headline.endswith(
        "Something outside the runs disturbed the launches of all comparisons, and may have slowed them by up to 5 %: "
        "a verdict holds in spite of that, what is smaller is not decided."
    )
    assert slightly.table.rows[0][slightly.table.head.index("verdict")] == "ring faster"
    assert much.table.rows[0][much.table.head.index("verdict")] == "undecided"
    assert "by up to 400 %" in much.headline
    assert "0 ok launches and 6 disturbed ones" in line(slightly, "Measured with")
    assert "a step takes" in line(slightly, "What bounds it")
    assert not any("Without numbers" in note for note in slightly.caveats)


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([arm(2, [1.0], **RINGS), arm(1, [0.6], strategy="local")],
         f"{NOTHING}parameter server has numbers, so there is nothing to compare. "
         "Horovod's ring with 2 workers trains 1.67× as fast as one process."),
        ([arm(2, [1.0], **ONE_SERVER)], f"{NOTHING}ring has numbers, so there is nothing to compare."),
        ([arm(1, [1.0], strategy="local")],
         f"{NOTHING}ring and no parameter server has numbers, so there is nothing to compare."),
        ([[make_failure("failed", "killed", num_workers=2, **RINGS)]], "No answer: no run has numbers."),
        ([arm(2, [1.0], **RINGS), arm(3, [1.0], **COLOCATED)],
         "No answer: a ring (ranks: 2) and servers (3) have no launch of equal work in common."),
        ([arm(2, [1.0], **RINGS), arm(2, [1.0], **ONE_SERVER, consistency="asp")],
         "No answer: only asynchronous servers ran, which learn less from a token than a ring."),
    ],
)  # fmt: skip
def test_where_nothing_can_be_compared_the_answer_says_why(runs: list[list[RunRecord]], words: str) -> None:
    found = answer_of(*runs)
    assert found.headline == words
    assert found.table.rows == []


def test_without_a_ring_the_arrangements_at_equal_nodes_are_ranked() -> None:
    servers: dict[str, Any] = {**ONE_SERVER, **NODES}
    whole, ranges = ({**servers, **COLOCATED, "sharding": sharding} for sharding in ("tensors", "ranges"))
    found = answer_of(
        arm(8, [8000.0] * 2, **whole), arm(8, [20000.0] * 2, **ranges), arm(7, [6000.0] * 2, **servers),
        arm(2, [30000.0] * 2, **ranges),
    )  # fmt: skip
    assert found.headline == (
        "No answer: no ring has numbers, so there is nothing to compare. Fastest at 8 nodes: colocated servers, "
        "sharding ranges, 20,000 (20,000–20,000) tokens/s. Of that, in medians: colocated servers, sharding tensors 40 "
        "%; 1 server, sharding ranges 30 %."
    )


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ({"link": "200mbit"}, {"link": "1gbit"}, ["link 200mbit", "link 1gbit"]),
        ({"model": "gpt-nano"}, {"model": "gpt-micro"}, ["Gpt-nano", "Gpt-micro"]),
    ],
)
def test_two_links_or_models_are_two_settings(one: dict[str, Any], other: dict[str, Any], names: list[str]) -> None:
    found = answer_of(*(
        arm(2, [rate] * 3, **kind, **{**NODES, **more})
        for more in (one, other) for rate, kind in ((200.0, RINGS), (100.0, COLOCATED))
    ))  # fmt: skip
    assert found.headline == (
        "On emulated nodes: Colocated servers against Horovod's ring at equal nodes, each setting at its largest size: "
        "slower in 2 of 2 settings (2.00×)."
    )
    assert all(any(name in title for title, _ in found.lines) for name in names)
    assert not any("n_embd" in title for title, _ in found.lines)


def test_settings_are_counted_by_verdict() -> None:
    found = answer_of(*(
        arm(2, [speed] * launches, batch_size=batch, **kind)
        for batch, rate, launches in ((2, 150.0, 1), (4, 100.0, 3), (8, 150.0, 3), (16, 300.0, 3))
        for kind, speed in ((RINGS, rate), (COLOCATED, 100.0))
    ))  # fmt: skip
    assert found.headline == (
        "Colocated servers against Horovod's ring at equal ranks, each setting at its largest size: "
        "slower in 2 of 4 settings (1.50× to 3.00×), equivalent in 1 of 4 settings (ring ÷ servers 1.00), "
        "no verdict in 1 of 4 settings (fewer than 3 pairs of launches; ring ÷ servers 1.50)."
    )


def test_the_most_realistic_place_has_the_headline_and_every_place_says_whether_distributing_pays() -> None:
    here = [arm(2, [90.0] * 3, **RINGS), arm(2, [60.0] * 3, **COLOCATED), arm(1, [100.0] * 3, strategy="local")]
    found = answer_of(*topology(), *here)
    assert found.headline.startswith("On emulated nodes: ")
    pays = {title: text.split(".")[0] for title, text in found.lines if title.startswith("Worth")}
    assert pays == {
        "Worth distributing": "Yes",
        "Worth distributing (one machine, fp32, 8 sequences per worker)": "No",
    }


def test_another_place_in_which_nothing_is_decided_has_one_sentence() -> None:
    """The headline describes the only setting of the main place; the table has every comparison."""
    here = [
        arm(2, [rate, rate], batch_size=batch, **kind)
        for batch, faster in ((2, 135.0), (8, 103.0)) for kind, rate in ((RINGS, faster), (ONE_SERVER, 100.0))
    ]  # fmt: skip
    titles = dict(answer_of(*topology(), *here).lines)
    assert titles["One machine"] == (
        "One dedicated server against Horovod's ring at equal workers, each setting at its largest size: no verdict in "
        "2 of 2 settings (fewer than 3 pairs of launches; ring ÷ servers 1.03 to 1.35)."
    )
    assert not any(title.startswith(("One machine,", "Emulated nodes")) for title in titles)
    assert not any("no verdict in 2 of 2 settings" in text for _, text in answer_of(*here).lines)  # as the headline
    decided = [arm(2, [rate] * 3, batch_size=4, **kind) for kind, rate in ((RINGS, 200.0), (ONE_SERVER, 100.0))]
    several = [title for title, _ in answer_of(*topology(), *here, *decided).lines if title.startswith("One machine")]
    assert len(several) == 3


def test_a_loss_that_neither_has_is_one_dash() -> None:
    nothing: dict[str, Any] = {"held_out_loss": np.nan}
    assert answer.versus(nothing, nothing, "held_out_loss") == "—"
    assert answer.versus({"held_out_loss": 2.5}, nothing, "held_out_loss") == "2.50 : —"


def test_time_to_the_loss_decides_whether_distributing_pays() -> None:
    """Twice the tokens per second, but no earlier at the loss."""
    alike = {"speedup": 2.0, "speedup_low": np.nan, "speedup_high": np.nan, "baseline": "local", "target_loss": 3.3,
             "batch_size": 8, "precision": "fp32"}  # fmt: skip
    rows: dict[str, dict[str, Any]] = {
        cell: {**alike, "time_to_loss_s": seconds, "strategy": strategy}
        for cell, seconds, strategy in (("r", 12.0, "mpi_ring"), ("s", 14.0, "parameter_server"), ("l", 10.0, "local"))
    }
    duel = {"ring": "r", "server": "s", "ring_name": "the ring", "server_name": "one server", "size": 2,
            "num_servers": 1, "equal": "nodes", "batch_size": 8, "precision": "fp32"}  # fmt: skip
    assert conclusions.worth([duel], rows).startswith(
        "No. Seconds until training loss 3.30, warm-up included: one process 10.0, the ring 12.0 and one server 14.0."
    )
    rows["l"]["time_to_loss_s"] = 24.0
    assert conclusions.worth([duel], rows).startswith("Yes.")


@given(st.floats(0.981, 1.019), st.integers(1, 6), st.floats(0, 0.3))
@settings(max_examples=25)
def test_nobody_is_faster_within_the_margin(ratio: float, n: int, spread: float) -> None:
    ring = 100 * ratio * (1 + spread * (-1) ** np.arange(n))
    runs = [*arm(2, list(ring), **RINGS), *arm(2, [100.0] * n, **COLOCATED)]
    text = " ".join(sentences.sentences(duels.duels(records.frame(runs), 0.02), 0.02))
    if abs(np.mean(np.log(ring)) - np.log(100)) <= np.log(1.02):
        assert "slower" not in text
        assert "faster" not in text


def test_sizes_with_the_same_verdict_share_a_sentence() -> None:
    speeds = {2: (100.0, 100.0), 4: (220.0, 100.0), 8: (400.0, 100.0), 16: (400.0, 400.0)}
    runs = [
        run for n, pair in speeds.items() for kind, speed in zip((RINGS, COLOCATED), pair, strict=True)
        for run in arm(n, [speed] * 3, **kind)
    ]  # fmt: skip
    assert sentences.sentences(duels.duels(records.frame(runs)), 0.02) == [
        "Colocated servers and Horovod's ring are equivalent (within 2 %) at 2 and 16 ranks.",
        "Colocated servers are slower than Horovod's ring: 2.20× at 4 ranks and 4.00× at 8 ranks.",
    ]


def test_caveats_name_missing_verdicts_and_cells_without_numbers() -> None:
    few = answer_of(arm(2, [2.0, 2.1], **RINGS), arm(2, [1.0, 1.0], **COLOCATED))
    assert any(note.startswith("No verdict in 1 of 1") for note in few.caveats)
    found = answer_of(
        arm(2, [1.0], **RINGS),
        [make_failure("failed", "a worker died", num_workers=4, **RINGS)],
        [make_failure("timeout", "after 600 s", num_workers=2, link="200mbit", **RINGS)],
    )
    assert found.caveats[0] == (
        "Without numbers: 1 of 1 cell on emulated nodes (1 timeout); 1 other cell (1 failed). See Validity for reasons."
    )


def test_the_report_says_how_many_planned_runs_are_missing_why_and_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    grid = [{**RINGS, "num_workers": [2, 4]}, {"strategy": "parameter_server", "placement": "colocated"}]
    sweep = {"defaults": {"steps": 3, "num_workers": 2}, "grid": grid, "repeats": 3, "budget": "4min"}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    lost = make_failure("failed", "killed", num_workers=2, steps=3, repeat=2, **RINGS)
    for run in (*arm(2, [1.0] * 2, **RINGS, steps=3), lost):
        records.append(folder, run)
    said = write.unfinished(folder)
    assert said.startswith(
        "7 of 9 planned runs are missing: 6 have not run (the budget of 4min ended before them) and 1 failed. The same "
        "command runs them in about "
    )
    assert said.endswith("on the same machine: `psring sweep study/sweep.yaml --out study`.")
    (folder / "sweep.yaml").write_text(yaml.safe_dump({**sweep, "defaults": {"steps": 4}}))
    assert write.unfinished(folder) == ""  # of another version
    (folder / "sweep.yaml").write_text("grid: [{strategy: none_such}]")
    assert write.unfinished(folder) == write.unfinished(tmp_path) == ""


def test_psring_report_prints_the_answer_then_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    for run in (run for cell in (arm(2, [104.0] * 3, **RINGS), arm(2, [100.0] * 3, **COLOCATED)) for run in cell):
        records.append(folder, run)
    assert cli.main(["report", str(folder), "--margin", "5%"]) == 0
    printed = capsys.readouterr().out
    said = "At 2 ranks use Horovod's ring or colocated servers: they are equivalent (within 5 %)."
    assert " ".join(printed.split()).startswith(said)
    assert printed.splitlines()[-1] == str(folder / "report.html")
    assert said in (folder / "report.md").read_text("utf-8")
    assert said.replace("'", "&#39;").replace(" %", "\u00a0%") in (folder / "report.html").read_text("utf-8")
    assert cli.main(["report", str(folder), "--margin", "much"]) == 2


def test_a_setting_is_named_by_what_varies_in_its_place() -> None:
    assert RunConfig(**RINGS, num_workers=2).precision == "fp32"
    mixed = [arm(2, [1.0, 2.0], **kind, **more) for kind in (RINGS, COLOCATED) for more in ({}, NODES)]
    table = duels.duels(records.frame([run for cell in mixed for run in cell]))
    expected = [f"{place}, fp32, 8 sequences per worker" for place in ("emulated nodes", "one machine")]
    assert sorted(answer.settings_of(table)) == expected
