"""Laws of a sweep: every planned run gets a record, also if it fails, and a second call runs what is missing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from bench import environment, records
from bench.config import BadInput, RunConfig
from bench.records import PlannedRun, RunRecord
from bench.sweep import plan as planning
from bench.sweep import remaining
from bench.sweep import run as sweep
from bench.sweep.file import read_sweep
from bench.sweep.launch import Outcome
from tests.support.launches import failing_at, instant, rejecting
from tests.support.plans import QUIET, SWEEPS, make_sweep


def statuses(done: list[RunRecord]) -> Counter[str]:
    return Counter(record.status for record in done)


def test_a_plan_has_every_run_once() -> None:
    demo = read_sweep(SWEEPS / "demo.yaml")
    launches = planning.plan(demo, "demo")
    runs = [run for planned in launches for run in planned]
    assert len({run.run_id for run in runs}) == len(runs) == sum(cell.repeats for cell in demo.cells("demo"))
    assert launches == planning.plan(demo, "demo")  # the order is stored in a seed


def test_runs_of_one_launch_share_ranks_and_horovod_comes_last() -> None:
    demo = read_sweep(SWEEPS / "demo.yaml")
    launches = planning.plan(demo, "demo")
    for planned in launches:
        assert len({(run.config.world_size, run.config.link) for run in planned}) == 1
        starts_horovod = [run.config.strategy == "ring_allreduce" for run in planned]
        assert starts_horovod == sorted(starts_horovod)  # its thread runs until the ranks end
    worlds = {(cell.config.world_size, cell.config.link, cell.repeats) for cell in demo.cells("demo")}
    assert len(launches) == sum(repeats for *_, repeats in worlds)  # not one per run


def test_horovod_starts_once_in_a_process() -> None:
    ring: dict[str, object] = {"strategy": "ring_allreduce", "num_workers": 2, "fusion_threshold_bytes": [1024, 2048]}
    server: dict[str, object] = {"strategy": "parameter_server", "num_workers": 2, "placement": "colocated"}
    knobs = [
        {run.config.fusion_threshold_bytes for run in planned if run.config.strategy == "ring_allreduce"}
        for planned in planning.plan(make_sweep([ring, server]), "x")
    ]
    assert sorted(map(len, knobs)) == [1, 1]


def test_a_second_call_runs_only_what_is_missing(tmp_path: Path) -> None:
    one = make_sweep([{"strategy": "local", "batch_size": [1, 2]}])
    two = make_sweep([{"strategy": "local", "batch_size": [1, 2, 3]}], repeats=2)
    assert statuses(sweep.run_sweep(one, "one", tmp_path, QUIET, instant)) == {"ok": 2}
    before = (tmp_path / "runs.jsonl").read_text()
    more = sweep.run_sweep(two, "two", tmp_path, QUIET, instant)
    assert statuses(more) == {"ok": 4}
    assert (tmp_path / "runs.jsonl").read_text().startswith(before)
    assert sweep.run_sweep(two, "two", tmp_path, QUIET, instant) == []
    assert len(records.read(tmp_path)) == 6
    assert sorted(path.stem for path in (tmp_path / "steps").iterdir()) == sorted(
        record.run_id for record in records.read(tmp_path)
    )


def test_a_truncated_last_line_loses_one_run(tmp_path: Path) -> None:
    plan = make_sweep([{"strategy": "local", "batch_size": [1, 2]}])
    sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant)
    file = tmp_path / "runs.jsonl"
    file.write_text(file.read_text()[:-100])
    assert statuses(sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant)) == {"ok": 1}
    assert len(records.read(tmp_path)) == 2


def test_a_cell_that_fails_is_recorded_and_the_others_run(tmp_path: Path) -> None:
    (tmp_path / "odd.bin").write_bytes(b"\1\0" * 90000 + b"\0\x10")  # the last token is outside the vocabulary
    odd = {"strategy": "local", "data": str(tmp_path / "odd.bin")}
    plan = make_sweep([{"strategy": "local", "batch_size": [1, 2]}, odd])
    tmp_path = tmp_path / "out"
    done = sweep.run_sweep(plan, "plan", tmp_path, QUIET)
    assert statuses(done) == {"ok": 2, "failed": 1}
    (failed,) = (record for record in done if record.status == "failed")
    assert "has token 4096, outside vocab_size" in failed.reason
    assert failed.summary is None
    assert "has token 4096, outside vocab_size" in (tmp_path / failed.log).read_text()
    again = sweep.run_sweep(plan, "plan", tmp_path, QUIET)
    assert [record.run_id for record in again] == [failed.run_id]


def test_after_a_failed_run_the_launch_is_repeated_with_those_that_are_left(tmp_path: Path) -> None:
    plan = make_sweep([{"strategy": "local", "batch_size": [1, 2, 3, 4]}])
    launches: list[int] = []
    fails = failing_at(lambda run: run.config.batch_size in (2, 3))

    def counted(planned: Sequence[PlannedRun], *rest: Any) -> Outcome:
        launches.append(len(planned))
        return fails(planned, *rest)

    done = sweep.run_sweep(plan, "plan", tmp_path, QUIET, counted)
    assert sorted(record.config.batch_size for record in done if record.status == "ok") == [1, 4]
    failed = [record for record in done if record.status == "failed"]
    assert sorted(record.config.batch_size for record in failed) == [2, 3]
    assert {record.reason for record in failed} == {
        "exit code 1: rank 0 (worker) on here failed: ValueError: no such luck"
    }
    logs = {(tmp_path / record.log).read_text() for record in failed}
    assert logs == {"==> launcher <==\na launcher's words\n\n==> rank 0 <==\nTraceback: ValueError: no such luck\n"}
    assert launches[0] == 4
    assert launches == sorted(launches, reverse=True)
    assert len({record.run_id for record in done}) == len(done) == 4


def names(found: Sequence[RunRecord]) -> list[tuple[int, int, str]]:
    return [(record.repeat, record.attempt, record.status) for record in found]


def test_rejected_launches_are_replaced_after_their_repeat_and_kept(tmp_path: Path) -> None:
    plan = make_sweep([{"strategy": "local"}], repeats=3)
    first_of_two = rejecting(lambda run: run.repeat == 1 and not run.attempt)
    done = sweep.run_sweep(plan, "plan", tmp_path, QUIET, first_of_two)
    assert names(done) == [(0, 0, "ok"), (1, 0, "invalid"), (1, 1, "ok"), (2, 0, "ok")]
    assert names(records.read(tmp_path)) == names(done)
    assert all(record.summary for record in done)
    assert sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant) == []


@pytest.mark.parametrize("budget", [None, "1h"])  # with a budget a whole stage is replaced at once
@pytest.mark.parametrize(
    ("repeats", "declared", "bound"), [(1, None, 1), (2, None, 1), (6, None, 3), (3, 2, 2), (3, 0, 0)]
)
def test_replacements_have_a_bound(
    tmp_path: Path, repeats: int, declared: int | None, bound: int, budget: str | None
) -> None:
    more = {"replacements": declared, "budget": budget}
    plan = make_sweep([{"strategy": "local"}], repeats=repeats).model_copy(update=more)
    done = sweep.run_sweep(plan, "plan", tmp_path, QUIET, rejecting(lambda run: not run.attempt))
    assert Counter((record.attempt > 0, record.status) for record in done if record.attempt) == (
        {(True, "ok"): bound} if bound else {}
    )
    assert statuses(done)["invalid"] == repeats
    assert sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant) == []  # nor are there more at resume


def test_a_machine_that_stays_busy_gets_one_replacement_and_more_when_it_is_idle(tmp_path: Path) -> None:
    plan = make_sweep([{"strategy": "local"}], repeats=4)
    done = sweep.run_sweep(plan, "plan", tmp_path, QUIET, rejecting(lambda run: True))
    assert names(done) == [(0, 0, "invalid"), (0, 1, "invalid"), *((repeat, 0, "invalid") for repeat in (1, 2, 3))]
    assert remaining.of_folder(tmp_path).startswith("1 run was disturbed from outside: while nothing else uses this")
    assert names(sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant)) == [(0, 2, "ok")]  # 2 of 4 may be replaced
    assert remaining.of_folder(tmp_path) == ""


def test_an_invalid_run_that_was_not_rejected_is_repeated(tmp_path: Path) -> None:
    plan = make_sweep([{"strategy": "local"}])
    (wrong,) = sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant)
    records.append(tmp_path, wrong.model_copy(update={"status": "invalid", "rejected": False}))
    assert names(sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant)) == [(0, 0, "ok")]


def test_a_missing_input_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for cell in ({"data": "missing.bin"}, {"compute": "emulated", "compute_from": "missing.json"}):
        with pytest.raises(BadInput, match=r"missing\.(bin|json)"):
            sweep.run_sweep(
                make_sweep([{"strategy": "local"}, {"strategy": "local", **cell}]), "x", tmp_path / "o", QUIET
            )
    assert not (tmp_path / "o").exists()


def test_a_file_with_other_content_is_another_measurement(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus.bin", tmp_path / "out"
    corpus.write_bytes(b"\1\0" * 9000)
    one, two = (make_sweep([{"strategy": "local", "data": str(corpus)}], repeats=repeats) for repeats in (1, 2))
    assert statuses(sweep.run_sweep(one, "one", out, QUIET, instant)) == {"ok": 1}
    corpus.write_bytes(b"\2\0" * 9000)
    with pytest.raises(BadInput, match=r"corpus\.bin: its content is not what the runs in .* read"):
        sweep.run_sweep(two, "two", out, QUIET, instant)
    corpus.write_bytes(b"\1\0" * 9000)
    assert statuses(sweep.run_sweep(two, "two", out, QUIET, instant)) == {"ok": 1}


def test_a_file_that_changes_during_a_sweep_ends_it(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.bin"
    corpus.write_bytes(b"\1\0" * 9000)

    def launch(planned: Sequence[PlannedRun], scratch: Path, poll: Any) -> Outcome:
        corpus.write_bytes(b"\2\0" * 9001)
        return instant(planned, scratch, poll)

    two = make_sweep([{"strategy": "local", "data": str(corpus)}], repeats=2)
    with pytest.raises(BadInput, match="its content is not"):
        sweep.run_sweep(two, "two", tmp_path / "out", QUIET, launch)
    assert len(records.read(tmp_path / "out")) == 1


def test_another_deadline_is_the_same_measurement(tmp_path: Path) -> None:
    one, two = (make_sweep([{"strategy": "local", "timeout_s": timeout_s}]) for timeout_s in (20, 30))
    assert statuses(sweep.run_sweep(one, "one", tmp_path, QUIET, instant)) == {"ok": 1}
    assert sweep.run_sweep(two, "two", tmp_path, QUIET, instant) == []


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ({"strategy": "ring_allreduce", "wire_dtype": "bf16"}, "use wire_dtype fp32 or fp16"),
        ({"strategy": "pipeline", "n_layer": 3}, "3 layers (n_layer) do not divide into 2 equal stages"),
        ({"strategy": "tensor_parallel", "n_head": 3, "n_embd": 12}, "3 heads (n_head) do not divide among 2 ranks"),
        ({"strategy": "fsdp", "wire_dtype": "bf16", "gradient_accumulation": 2}, "use wire_dtype: fp32"),
    ],
    ids=lambda value: value.get("strategy") if isinstance(value, dict) else "",
)
def test_what_no_library_supports_is_recorded_as_unsupported(
    tmp_path: Path, cell: dict[str, object], reason: str
) -> None:
    plan = make_sweep([{"strategy": "local"}, {"num_workers": 2, **cell}], repeats=3)
    done = sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant)
    assert statuses(done) == {"ok": 3, "unsupported": 1}
    (record,) = (each for each in done if each.status == "unsupported")
    assert reason in record.reason


def test_a_run_past_its_deadline_is_recorded_as_timeout(tmp_path: Path) -> None:
    slow = {"strategy": "local", "steps": 10**6, "timeout_s": 3}
    done = sweep.run_sweep(make_sweep([{"strategy": "local"}, slow]), "plan", tmp_path, QUIET)
    assert statuses(done) == {"ok": 1, "timeout": 1}
    (late,) = (record for record in done if record.status == "timeout")
    assert re.search(r"rank 0 in \S+ \(\w+\.py:\d+\)", late.reason)
    assert "most recent call first" in (tmp_path / late.log).read_text()


def test_two_sweeps_cannot_write_the_same_folder(tmp_path: Path) -> None:
    plan = make_sweep([{"strategy": "local"}])
    with FileLock(tmp_path / ".lock"), pytest.raises(BadInput, match="another sweep is writing there"):
        sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant)


def test_results_of_another_environment_are_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_sweep([{"strategy": "local"}])
    sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant)
    here = environment.collect()
    monkeypatch.setattr(environment, "collect", lambda: {**here, "commit": "another"})
    before = (tmp_path / "environment.json").read_text()
    with pytest.raises(BadInput, match=r"library version or setting \(commit: .* then, another now\)"):
        sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant)
    assert (tmp_path / "environment.json").read_text() == before


def test_records_that_a_killed_sweep_did_not_collect_are_recovered(tmp_path: Path) -> None:
    plan = make_sweep([{"strategy": "local", "batch_size": [1, 2]}])
    sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant)
    lines = (tmp_path / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "runs.jsonl").write_text(lines[0])
    (tmp_path / ".running/result").mkdir(parents=True)
    (tmp_path / ".running/result/runs.jsonl").write_text(lines[1])
    assert sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant) == []
    assert len(records.read(tmp_path)) == 2


def test_where_nodes_are_impossible_their_cells_are_unsupported_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise BadInput("cluster: this user may not make namespaces")

    monkeypatch.setattr(sweep.sandbox, "enter", refuse)
    emulated: dict[str, object] = {"strategy": "local", "link": "1mbit"}
    both = make_sweep([emulated, {"strategy": "local"}])
    done = sweep.run_sweep(both, "both", tmp_path / "both", QUIET, instant)
    assert statuses(done) == {"ok": 1, "unsupported": 1}
    assert {record.reason for record in done if record.status == "unsupported"} == {
        "cluster: this user may not make namespaces"
    }
    left = planning.missing(planning.plan(both, "both"), done)
    assert [run.config.link for planned in left for run in planned] == ["1mbit"]  # it may be allowed next time
    with pytest.raises(BadInput, match="may not make namespaces"):
        sweep.run_sweep(make_sweep([emulated]), "emulated", tmp_path / "emulated", QUIET)
    assert not (tmp_path / "emulated").exists()


def test_a_run_id_names_the_config_and_the_repeat() -> None:
    (config,) = make_sweep([{"strategy": "local"}]).runs("x")
    assert PlannedRun(config=config, repeat=2).run_id == f"{config.digest()}-r2"


def test_a_run_is_described_by_what_distinguishes_it() -> None:
    server = {"strategy": "parameter_server", "num_workers": 2}
    rare = RunConfig.model_validate({**server, "placement": "colocated", "sync_every": 5})
    assert PlannedRun(config=rare, repeat=0).describe() == (
        "parameter_server 2, colocated, sync every 5, fp32, wire fp32, batch 8"
    )
    stale = RunConfig.model_validate({**server, "num_servers": 1, "consistency": "asp"})
    assert PlannedRun(config=stale, repeat=0).describe() == "parameter_server 2 + 1, asp, fp32, wire fp32, batch 8"
