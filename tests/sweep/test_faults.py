"""Laws of faults: whatever ends a rank, a launch or a sweep, nothing is lost or doubled, and nobody is left behind.

scripts/check_faults.py does the same, in more ways, to 24 cells.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bench import records
from bench.sweep.status import describe
from tests.support.plans import SHORT, TINY
from tests.support.processes import PSRING, alive, environ_of, gone, is_rank, make_environ, run_command

SERVER = {"strategy": "parameter_server", "num_servers": 1}
STEPS = 150


class Running:
    """A sweep of four cells in a process of its own, once its first run has arrived."""

    def __init__(self, tmp_path: Path, **keys: object) -> None:
        defaults = {**TINY, **SHORT, "steps": STEPS, **keys}
        file, self.out = tmp_path / "sweep.yaml", tmp_path / "out"
        file.write_text(json.dumps({"defaults": defaults, "grid": [{"batch_size": [1, 2, 3, 4]}]}))
        self.argv = [*PSRING, "sweep", str(file), "--out", str(self.out)]
        self.marker = f"PSRING_FAULT_{os.getpid()}"
        self.process = subprocess.Popen(
            self.argv,
            env=make_environ(**{self.marker: "1"}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.wait_for(1)

    def wait_for(self, lines: int) -> None:
        """Return once that many runs are on the disk."""
        deadline = time.monotonic() + 100
        while len(self.ok()) < lines:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def ok(self) -> set[str]:
        """The ok runs of the folder."""
        found = records.read(self.out) if records.size(self.out) else []
        return {record.run_id for record in found if record.status == "ok"}

    def end(self) -> int:
        """Wait for the sweep to end, with all that it has started."""
        self.said, _ = self.process.communicate(timeout=90)
        assert gone(f"{self.marker}=1")
        return self.process.returncode

    def resume(self) -> None:
        """Run it again: what was ok stays, what was not is run, and nothing is there twice."""
        kept = self.ok()
        ended = run_command(self.argv)  # not with this process's C environment, where MPI may have left its own
        assert ended.returncode == 0, ended.stderr
        lines = [json.loads(line) for line in (self.out / "runs.jsonl").read_text().splitlines()]
        assert sum(line["status"] == "ok" for line in lines) == len(self.ok()) == 4
        assert kept <= self.ok()


@pytest.mark.launcher
@pytest.mark.parametrize(
    ("signs", "code"),
    [((signal.SIGINT, signal.SIGINT), 130), ((signal.SIGTERM,), 130), ((signal.SIGKILL,), -signal.SIGKILL)],
    ids=["twice ctrl-c", "terminated", "killed"],
)
def test_a_sweep_that_is_killed_leaves_no_process_and_resumes(
    tmp_path: Path, signs: tuple[signal.Signals, ...], code: int
) -> None:
    sweep = Running(tmp_path, **SERVER)
    for sign in signs:
        sweep.process.send_signal(sign)
        time.sleep(0.2)
    assert sweep.end() == code
    assert sweep.ok()
    if code != 130:
        sweep.resume()


def test_ctrl_c_lets_the_running_cell_finish_and_status_names_the_missing_runs(tmp_path: Path) -> None:
    sweep = Running(tmp_path, strategy="local", steps=400)
    assert describe(sweep.out)[0].startswith("at #0 local 1, fp32, wire fp32, batch")
    at = json.loads((sweep.out / ".running/now").read_text())["run_id"]
    sweep.process.send_signal(signal.SIGINT)
    assert sweep.end() == 130
    assert at in sweep.ok()
    assert "Ctrl-C again to stop now" in sweep.said
    after = "\n".join(describe(sweep.out))
    assert f"{len(sweep.ok())} of 4 runs done, {4 - len(sweep.ok())} missing" in after
    assert after.count("tokens/s, n 1") == len(sweep.ok())


def test_status_of_no_sweep_is_refused(tmp_path: Path) -> None:
    refused = run_command([*PSRING, "status", str(tmp_path)])
    assert (refused.returncode, "give the folder" in refused.stderr) == (2, True)


@pytest.mark.launcher
@pytest.mark.parametrize(
    ("sign", "status", "said"),
    [
        (signal.SIGKILL, "failed", r"rank 1 \(server\) on \S+ was ended by signal 9"),
        (signal.SIGSTOP, "failed", r"rank 1 \(server\) on \S+ stopped responding; ranks? 0.* in \S+ \(\w+\.py:\d+\)"),
    ],
)
def test_a_rank_that_dies_or_hangs_fails_only_its_cell(
    tmp_path: Path, sign: signal.Signals, status: str, said: str
) -> None:
    sweep = Running(tmp_path, **SERVER)
    os.kill(
        next(p.pid for p in alive(f"{sweep.marker}=1") if is_rank(p) and "OMPI_COMM_WORLD_RANK=1" in environ_of(p)),
        sign,
    )
    assert sweep.end() == 1
    (bad,) = (record for record in records.read(sweep.out) if record.status != "ok")
    assert bad.status == status
    assert re.search(said, bad.reason), bad.reason
    assert "\n" not in bad.reason
    assert (sweep.out / bad.log).stat().st_size > 0


def test_a_full_disk_ends_a_sweep_in_one_line_and_it_resumes(tmp_path: Path) -> None:
    """The samples of two or three of the four runs fit on the file system."""
    defaults = {**TINY, **SHORT, "steps": STEPS, "strategy": "local"}
    (tmp_path / "sweep.yaml").write_text(json.dumps({"defaults": defaults, "grid": [{"batch_size": [1, 2, 3, 4]}]}))
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    sweep = " ".join([*PSRING, "sweep", str(tmp_path / "sweep.yaml"), "--out", str(disk / "out")])
    ended = run_command([
        "unshare", "--map-root-user", "--mount", "sh", "-c",
        f"mount -t tmpfs -o size=100k none {disk} && {sweep}; echo exit code $?; cp {disk}/out/runs.jsonl {kept}; "
        f"mount -o remount,size=50m {disk} && {sweep} && cat {disk}/out/runs.jsonl",
    ])  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (line,) = (line for line in ended.stderr.splitlines() if "psring: " in line)
    assert "No space left on device; make room, then the same command runs what is missing" in line
    assert "exit code 1" in ended.stdout
    before = [json.loads(line)["run_id"] for line in kept.read_text().splitlines()]
    after = [json.loads(line)["run_id"] for line in ended.stdout.splitlines() if line.startswith("{")]
    assert 0 < len(before) < len(after) == len(set(after)) == 4
    assert after[: len(before)] == before
