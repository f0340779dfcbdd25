"""The command line: every knob is a flag, every command is documented, and the main job works end to end."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest

from bench.arguments import RUN_FLAGS, build_parser
from bench.cli import main
from bench.config import RunConfig
from bench.records import RunRecord
from tests.support.processes import PSRING, run_command
from tests.support.synthetic import make_failure, make_record, make_rejected


def test_every_knob_is_a_flag_of_run_with_its_docstring_as_help() -> None:
    _, flags = build_parser()
    assert set(RUN_FLAGS.values()) <= set(flags["run"])
    assert {f"--{name.replace('_', '-')}" for name in RunConfig.model_fields if name != "num_workers"} <= set(
        flags["run"]
    )


def test_help_names_every_strategy(psring: Callable[..., object]) -> None:
    ended = psring("run", "--help")
    assert ended.returncode == 0
    for strategy in ("local", "independent", "parameter_server", "ring_allreduce", "mpi_ring", "ddp", "zero", "fsdp"):
        assert strategy in ended.stdout


@pytest.mark.parametrize(
    ("ended", "code", "said"),
    [
        ([make_rejected(1.0), make_rejected(1.0)], 0, "psring: 2 runs were rejected, disturbed from outside: "),
        ([make_rejected(1.0), make_failure("failed", "killed")], 1, " failed: killed"),
        ([make_record()], 0, ""),
    ],
)
def test_rejected_runs_are_counted_and_failed_ones_listed(
    ended: list[RunRecord], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("bench.sweep.run.run_sweep", lambda *_: ended)
    (tmp_path / "sweep.yaml").write_text("grid: [{}]\n")
    assert main(["sweep", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out")]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len({record.is_rejected for record in ended if record.status != "ok"})
    assert said in "\n".join(lines)


@pytest.mark.launcher
def test_from_a_sweep_file_to_a_report(psring: Callable[..., object], tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "defaults: {n_layer: 1, n_head: 2, n_embd: 16, block_size: 16, batch_size: 2, steps: 3, warmup_steps: 1,\n"
        "           check_equivalence: true, max_foreign_cpu_share: 1}\n"
        "grid:\n"
        "  - {strategy: local}\n"
        "  - {strategy: parameter_server, num_workers: 2, num_servers: 1}\n"
        "  - {strategy: ring_allreduce, num_workers: 2, wire_dtype: [fp32, bf16]}\n"
        "  - {strategy: ring_allreduce, num_workers: 2, launcher: horovodrun}\n"
    )
    out = tmp_path / "out"
    planned = psring("sweep", tmp_path / "sweep.yaml", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "5 cells, 5 runs, 4 launches" in planned.stdout
    ended = psring("sweep", tmp_path / "sweep.yaml", "--out", out)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert psring("report", out).returncode == 0
    summary = pd.read_csv(out / "summary.csv")
    assert sorted(summary["status"]) == ["ok"] * 4 + ["unsupported"]
    ok = summary[summary["status"] == "ok"]
    assert (ok["n"] == 1).all()
    assert ok["ledger_agrees"].astype(bool).all()
    assert (ok["equivalence_error"] <= ok["equivalence_bound"]).all()
    assert ok[ok["num_workers"] == 2]["final_loss"].nunique() == 1 or ok["final_loss"].std() < 1e-3
    for name in ("runs.csv", "report.html", "report.md", "environment.json", "sweep.yaml"):
        assert (out / name).stat().st_size > 0


def test_prepared_text_is_trained_on(psring: Callable[..., object], tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(Path(__file__).read_bytes() * 3)
    ended = psring("data", "prepare", tmp_path / "text", "--out", tmp_path / "text.bin")
    assert ended.returncode == 0, ended.stderr
    ended = psring("run", "--data", tmp_path / "text.bin", "--steps", 2, "--block-size", 32)
    assert ended.returncode == 0, ended.stderr
    assert "tokens/s" in ended.stdout


def test_a_calibration_is_made_and_used(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tiny = ["--n-layer", "1", "--block-size", "16", "--steps", "2", "--warmup-steps", "1", "--data", "synthetic"]
    times = str(tmp_path / "times.json")
    assert main(["calibrate", *tiny, "--out", times]) == 0
    assert main(["run", *tiny, "--compute", "emulated", "--compute-from", times]) == 0
    assert ": ok [emulated_compute]\n" in capfd.readouterr().out
    assert main(["run", *tiny, "--compute", "none", "--save-parameters", str(tmp_path / "weights.pt")]) == 2
    assert capfd.readouterr().err == "psring: --save-parameters: compute: none trains nothing; use --compute real\n"


@pytest.mark.launcher
def test_doctor_finds_this_machine_able(psring: Callable[..., object]) -> None:
    ended = psring("doctor")
    assert ended.returncode == 0, ended.stdout
    assert "MISSING" not in ended.stdout


def test_the_version_is_the_packages(psring: Callable[..., object]) -> None:
    assert psring("--version").stdout == f"psring {version('psring')}\n"


def test_a_removed_current_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "removed"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    ended = run_command([*PSRING, "status", str(tmp_path)])
    assert (ended.returncode, ended.stderr) == (
        2,
        "psring: the current directory was removed; change to one that exists\n",
    )


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no -P")
def test_a_folder_named_bench_in_the_current_directory_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("raise SystemExit('the wrong bench')")
    monkeypatch.chdir(tmp_path)
    assert run_command([*PSRING, "--version"]).returncode == 0


@pytest.mark.parametrize("name", ["", "a" * 300, "x\0y"])
def test_what_is_no_path_is_refused_for_every_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["report", name], ["sweep", "x.yaml", "--out", name], ["compress", "x.pt", "--out", name]):
        assert main(words) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_path_that_the_system_refuses_is_named_and_no_output_is_blamed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "a/file")

    monkeypatch.setattr("bench.sweep.status.describe", refuse)
    assert main(["status", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "psring: a/file: cannot be used: Permission denied\n"
