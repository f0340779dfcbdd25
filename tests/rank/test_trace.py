"""Laws of a trace: it has the phases of the last step's raw samples, in order, on one clock."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.rank.trace import RankTrace, write
from strategies.timeline import Timeline


def everything(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text())["traceEvents"])


def complete(path: Path) -> list[dict[str, Any]]:
    return [event for event in everything(path) if event["ph"] == "X"]


def test_clocks_are_aligned_at_the_barrier(tmp_path: Path) -> None:
    phases = [("forward", 0.0, 1.0), ("exposed_communication", 1.0, 1.5)]
    later = [(name, begin + 100, end + 100) for name, begin, end in phases]  # the same step on a clock set otherwise
    lanes = [RankTrace(0, "n0", 2.0, phases, [("communication", 0.5, 1.5)]), RankTrace(1, "n1", 102.0, later, [])]
    write(tmp_path / "trace.json", [*lanes, RankTrace(2, "n2", 7.0, [], [])])
    first, second = ([e for e in complete(tmp_path / "trace.json") if e["pid"] == rank] for rank in (0, 1))
    assert [(e["name"], e["ts"], e["dur"]) for e in first if e["tid"] == 0] == [
        ("forward", 0.0, 1e6),
        ("exposed_communication", 1e6, 0.5e6),
    ]
    assert [(e["name"], e["ts"]) for e in second] == [(e["name"], e["ts"]) for e in first if e["tid"] == 0]
    assert [(e["ts"], e["dur"]) for e in first if e["tid"] == 1] == [(0.5e6, 1e6)]


def test_a_librarys_timeline_has_a_process_and_a_row_per_tensor(tmp_path: Path) -> None:
    phases = [("backward", 3.0, 4.0)]
    said = {"weight": [("NEGOTIATE", 3.25, 3.5), ("ALLREDUCE", 3.5, 3.75)], "bias": [("ALLREDUCE", 3.5, 3.75)]}
    write(
        tmp_path / "trace.json",
        [RankTrace(0, "n0", 5.0, phases, [], said, "Horovod"), RankTrace(1, "n1", 5.0, phases, [])],
    )
    events = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["pid"] == 2]
    assert [e["args"]["name"] for e in events if e["ph"] == "M"] == ["Horovod (rank 0 on n0)", "weight", "bias"]
    spans = [(e["tid"], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert spans == [(0, "NEGOTIATE", 25e4, 25e4), (0, "ALLREDUCE", 5e5, 25e4), (1, "ALLREDUCE", 5e5, 25e4)]


def test_a_servers_work_is_shown_from_the_last_step_on_and_on_the_workers_clock(tmp_path: Path) -> None:
    worker = RankTrace(0, "n0", 5.0, [("backward", 3.0, 4.0)], [])
    work = {"sum": [("chunk 0", 91.0, 92.0), ("chunk 0", 93.5, 93.75)]}  # the first one was in the step before
    write(tmp_path / "trace.json", [worker, RankTrace(1, "n1", 95.0, [], [], work, "server")])
    events = everything(tmp_path / "trace.json")
    assert [e["args"]["name"] for e in events if e["ph"] == "M"] == ["rank 0 on n0", "server (rank 1 on n1)", "sum"]
    assert [(e["name"], e["ts"], e["dur"]) for e in events if e["pid"] == 3 and e["ph"] == "X"] == [
        ("chunk 0", 5e5, 25e4)
    ]


def test_a_timeline_keeps_the_latest_spans_and_none_before_it_is_started() -> None:
    timeline = Timeline(most=3)
    timeline.add("sum", lambda: "early", 0.0)
    timeline.start()
    for number in range(5):
        timeline.add("sum" if number % 2 else "reply", lambda number=number: f"chunk {number}", float(number))
    found = {kind: [(what, begin) for what, begin, _ in spans] for kind, spans in timeline.by_kind().items()}
    assert found == {"reply": [("chunk 2", 2.0), ("chunk 4", 4.0)], "sum": [("chunk 3", 3.0)]}


@pytest.mark.launcher
def test_a_trace_agrees_with_the_raw_samples(mpirun: Callable[..., Any], tmp_path: Path) -> None:
    flags = ["--strategy", "parameter_server", "--num-servers", 1, "--steps", 3, "--block-size", 16]
    ended = mpirun(2, "run", *flags, "--out", tmp_path / "out", "--trace", tmp_path / "trace.json")
    assert ended.returncode == 0, ended.stderr
    (samples,) = (tmp_path / "out/steps").iterdir()
    last = list(csv.DictReader(samples.read_text().splitlines()))[-1]
    events = complete(tmp_path / "trace.json")
    phases = [event for event in events if (event["pid"], event["tid"]) == (0, 0)]
    for phase in ("data", "optimizer"):  # no time of these is ever booked elsewhere
        assert sum(e["dur"] for e in phases if e["name"] == phase) == pytest.approx(float(last[f"{phase}_s"]) * 1e6)
    for before, after in pairwise(phases):
        assert before["ts"] + before["dur"] <= after["ts"] + 1e-3

    served = [event for event in events if event["pid"] == 2 + 1]  # the server's rank has no phases
    assert {event["pid"] for event in events} == {0, 2 + 1}
    names = {e["tid"]: e["args"]["name"] for e in everything(tmp_path / "trace.json") if e["name"] == "thread_name"}
    of_kind = {kind: [e for e in served if names[e["tid"]] == kind] for kind in names.values()}
    assert set(of_kind) == {"receive", "sum", "update", "reply"}
    # Every chunk is received, summed, updated and returned, in this order, in the last step.
    chunks = {int(e["name"].split()[1]) for e in of_kind["sum"]}
    for chunk in chunks:
        last_of = {
            kind: [e for e in events if int(e["name"].split()[1]) == chunk][-1] for kind, events in of_kind.items()
        }
        ends = [last_of[kind]["ts"] + last_of[kind]["dur"] for kind in ("receive", "sum", "update", "reply")]
        assert ends == sorted(ends)
    backward = next(e for e in phases if e["name"] == "backward")
    assert max(e["ts"] for e in of_kind["receive"]) > backward["ts"]


@pytest.mark.launcher
def test_horovods_timeline_lies_within_the_last_steps_communication(mpirun: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    flags = ["--strategy", "ring_allreduce", "--steps", 3, "--block-size", 16, "--trace", tmp_path / "trace.json"]
    ended = mpirun(2, "run", *flags, TMPDIR=str(tmp_path / "tmp"))
    assert ended.returncode == 0, ended.stderr
    events = complete(tmp_path / "trace.json")
    (whole,) = (e for e in events if (e["pid"], e["tid"]) == (0, 1))  # from the first gradient to the last answer
    said = [e for e in events if e["pid"] == 2]
    assert {"NEGOTIATE_ALLREDUCE", "ALLREDUCE", "MPI_ALLREDUCE"} <= {e["name"] for e in said}
    # Horovod reduces a gradient once every rank has it, and we hear of its mean after that: on one clock, in between.
    # Only the negotiation may begin earlier, by another rank that has its gradients before this one.
    assert all(e["ts"] + e["dur"] <= whole["ts"] + whole["dur"] for e in said)
    ours = (e for e in said if e["name"] != "NEGOTIATE_ALLREDUCE" and not e["name"].endswith("is ready"))
    assert all(whole["ts"] <= e["ts"] for e in ours)
    # Every parameter is reduced once, and nothing else in this step.
    assert all(sum(e["name"] == "ALLREDUCE" for e in said if e["tid"] == row) == 1 for row in {e["tid"] for e in said})
    assert not [path for path in (tmp_path / "tmp").rglob("*") if path.is_file()]
