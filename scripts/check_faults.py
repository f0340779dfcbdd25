"""Provoke the faults of a sweep, resume it, and count what is lost, doubled, different, or left behind.

    python scripts/check_faults.py [CASE ...]          # default: all cases; about 10 minutes on 2 cores

A sweep of 24 cells runs once without faults: the reference. Each case starts from a copy of its folder in which the
runs of one group of ranks are missing, provokes its fault while they run, and is resumed. disk_full needs root;
clock_set_back needs a C compiler (it changes the C library's time of day, not the machine's clock).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from bench import private, records
from bench.processes import PSRING

MARKER = f"PSRING_FAULTS_{os.getpid()}"
DEADLINE_S = 240
FREE_BYTES = 60_000
CLOCK = Path(__file__).with_name("clock_set_back.c")
SWEEP = """\
defaults: {{model: gpt-nano, block_size: 16, steps: 30, warmup_steps: 2, eval_batches: 0, timeout_s: 30,
           max_foreign_cpu_share: 1, hostfile: {hosts}}}
grid:
  - {{strategy: parameter_server, num_servers: 1, num_workers: [1, 2], batch_size: [1, 2, 4]}}
  - {{strategy: [ddp, independent, ring_allreduce], num_workers: [2, 3], batch_size: [1, 2, 4]}}
"""


class Case:
    """One case's folder and the sweep that writes it."""

    def __init__(self, work: Path, reference: Path, world: Callable[[records.RunRecord], bool]) -> None:
        self.work, self.out = work, work / "case"
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(reference, self.out)
        kept = [record for record in records.read(reference) if not world(record)]
        (self.out / "runs.jsonl").write_text("".join(record.model_dump_json() + "\n" for record in kept))
        self.given = len(kept)

    def start(self, **environ: str) -> subprocess.Popen[str]:
        """Start the sweep."""
        self.process = subprocess.Popen(
            [*PSRING, "sweep", str(self.work / "sweep.yaml"), "--out", str(self.out)],
            env={**os.environ, MARKER: "1", **environ}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        return self.process

    def wait_for(self, arrived: int, strategy: str = "") -> None:
        """Wait until `arrived` new records are written and a run of the strategy is under way."""
        names = {record.run_id: record.config.strategy for record in records.read(self.work / "reference")}
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            now = Path(self.out / ".running/now")
            with contextlib.suppress(OSError, ValueError):
                at = names[json.loads(now.read_text(encoding="utf-8"))["run_id"]]
                if self.lines() - self.given >= arrived and strategy in ("", at):
                    return
            time.sleep(0.01)
        output = self.process.communicate()[0] if self.process.poll() is not None else ""
        raise SystemExit(f"check_faults: {arrived} records and a run of {strategy or 'any'} did not arrive: {output}")

    def lines(self) -> int:
        """Number of lines of runs.jsonl."""
        return (self.out / "runs.jsonl").read_text(encoding="utf-8").count("\n")


def processes() -> list[psutil.Process]:
    """Return the processes that a case has started and that are still running."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if MARKER in process.environ() and process.pid != os.getpid() and process.status() != "zombie":
                found.append(process)
    return found


def rank(number: int) -> int:
    """Return the process id of a rank."""
    for process in processes():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("OMPI_COMM_WORLD_RANK") == str(number) and "ranks" in process.cmdline():
                return process.pid
    raise SystemExit(f"check_faults: rank {number} is not running")


def launcher() -> int:
    """Return the process id of mpirun, which in Open MPI 5 executes prterun."""
    return next(p.pid for p in processes() if "".join(p.cmdline()[:1]).endswith(("mpirun", "prterun")))


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a sweep; return its exit code and the last line that it printed."""
    said, _ = process.communicate(timeout=DEADLINE_S)
    return process.returncode, (said.strip().splitlines() or [""])[-1]


def kill(what: str, number: int = 0) -> Callable[[Case], tuple[int, str]]:
    """Return a fault that sends SIGKILL."""

    def fault(case: Case) -> tuple[int, str]:
        process = case.start()
        case.wait_for(1, "parameter_server" if what == "rank" else "")
        os.kill(
            {"sweep": lambda: process.pid, "mpirun": launcher, "rank": lambda: rank(number)}[what](), signal.SIGKILL
        )
        return end(process)

    return fault


def send(*signals: signal.Signals) -> Callable[[Case], tuple[int, str]]:
    """Return a fault that sends signals to the sweep."""

    def fault(case: Case) -> tuple[int, str]:
        process = case.start()
        case.wait_for(1)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.1)
        return end(process)

    return fault


def stopped(case: Case) -> tuple[int, str]:
    """SIGSTOP a rank: its neighbour detects it, and the reason names where the other ranks waited."""
    process = case.start()
    case.wait_for(1, "parameter_server")
    os.kill(rank(1), signal.SIGSTOP)
    code, _ = end(process)
    late = [record.reason for record in records.read(case.out) if "stopped responding" in record.reason]
    assert late, "no rank detected the stopped rank"
    return code, late[0]


def disk_full(case: Case) -> tuple[int, str]:
    """Fill the file system after a few more records."""
    small = case.work / "small"
    small.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", small], check=True)
    try:
        shutil.copytree(case.out, small, dirs_exist_ok=True)
        status = os.statvfs(small)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        subprocess.run(["mount", "-o", f"remount,size={used + FREE_BYTES}", small], check=True)
        full_size, case.out = case.out, small
        code, said = end(case.start())
        assert (code, "No space left" in said) == (1, True), said
        subprocess.run(["mount", "-o", "remount,size=100m", small], check=True)
        resume(case)
        shutil.rmtree(full_size)
        shutil.copytree(small, full_size)
        case.out = full_size
    finally:
        subprocess.run(["umount", "-l", small], check=True)
    return code, said


def truncated(case: Case) -> tuple[int, str]:
    """Truncate the last line of runs.jsonl."""
    file = case.out / "runs.jsonl"
    file.write_text(file.read_text(encoding="utf-8")[:-100])
    case.given -= 1  # this record is lost on purpose
    return 0, "the last line cut by 100 bytes"


def no_horovod(case: Case) -> tuple[int, str]:
    """Make the import of Horovod fail."""
    fake = case.work / "fake/horovod"
    fake.mkdir(parents=True, exist_ok=True)
    (fake / "__init__.py").write_text("raise ImportError('libmpi.so.40: not found')")
    paths = [str(fake.parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # which may be where psring lies
    return end(case.start(PYTHONPATH=os.pathsep.join(paths)))


def no_host(case: Case) -> tuple[int, str]:
    """Name an unknown host in the host file."""
    hosts = case.work / "hosts"
    good = hosts.read_text(encoding="utf-8")
    hosts.write_text("nowhere.invalid slots=8\n")
    try:
        return end(case.start())
    finally:
        hosts.write_text(good)


def clock_set_back(case: Case) -> tuple[int, str]:
    """Set the time of day back by an hour while the sweep runs."""
    mark = case.work / "set_back"
    process = case.start(CLOCK_SET_BACK=str(mark))
    case.wait_for(1)
    mark.touch()
    code, said = end(process)
    found = records.read(case.out)[case.given :]
    assert any(b.started_at < a.started_at for a, b in itertools.pairwise(found)), "the clock did not jump"
    assert all(0 < (record.wall_s or 0) < DEADLINE_S for record in found)
    return code, said


World = Callable[[records.RunRecord], bool]
THREE: World = lambda record: record.config.world_size == 3 and record.config.strategy != "ring_allreduce"  # noqa: E731
RING: World = lambda record: record.config.world_size == 2 and record.config.strategy == "ring_allreduce"  # noqa: E731
CASES: dict[str, tuple[Callable[[Case], tuple[int, str]], World]] = {
    "sweep_killed": (kill("sweep"), THREE),
    "mpirun_killed": (kill("mpirun"), THREE),
    "worker_killed": (kill("rank", 0), THREE),
    "server_killed": (kill("rank", 2), THREE),
    "rank_stopped": (stopped, THREE),
    "ctrl_c": (send(signal.SIGINT), THREE),
    "ctrl_c_twice": (send(signal.SIGINT, signal.SIGINT), THREE),
    "terminated": (send(signal.SIGTERM), THREE),
    "disk_full": (disk_full, THREE),
    "line_truncated": (truncated, lambda record: False),
    "no_horovod": (no_horovod, RING),
    "no_host": (no_host, RING),
    "clock_set_back": (clock_set_back, THREE),
}


def resume(case: Case) -> None:
    """Run the sweep again, without a fault."""
    code, said = end(case.start())
    assert code == 0, said


def check(name: str, work: Path) -> Counter[str]:
    """Run one case; return how much was lost, duplicated, different, and left behind by the resumed sweep."""
    fault, world = CASES[name]
    reference = {record.run_id: record for record in records.read(work / "reference")}
    case = Case(work, work / "reference", world)
    code, said = fault(case)
    orphans = left_behind()
    kept = [record.run_id for record in records.read(case.out) if record.status == "ok"]
    resume(case)
    lines = [json.loads(line) for line in (case.out / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
    good = Counter(line["run_id"] for line in lines if line["status"] == "ok")
    final = {record.run_id: record for record in records.read(case.out) if record.status == "ok"}
    differ = [
        key for key in reference
        if key in final and abs(final[key].summary.final_loss - reference[key].summary.final_loss) > 1e-4
    ]  # fmt: skip
    found = Counter(
        lost=len(set(kept) - final.keys()) + len(reference.keys() - final.keys()) + max(0, case.given - len(kept)),
        duplicated=sum(count - 1 for count in good.values()),
        orphans=orphans + left_behind(),
        different=len(differ) + len(final.keys() - reference.keys()),
        folders=sum(map(private.remove_abandoned, (private.SHARED_MEMORY, Path(tempfile.gettempdir())))),
    )
    print(f"{name}: exit {code}, {len(kept)} of {len(reference)} kept: {said[:160]}", flush=True)
    print(f"  resumed to {len(final)} of {len(reference)}; {dict(found)}", flush=True)
    return found


def left_behind() -> int:
    """Return how many processes are left 10 s after the sweep has ended, and kill them."""
    deadline = time.monotonic() + 10
    while processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    orphans = processes()
    for process in orphans:
        print("  left behind:", process.pid, " ".join(process.cmdline())[:120])
        process.kill()
    return len(orphans)


@contextlib.contextmanager
def reference_folder(*, set_clock: bool) -> Iterator[Path]:
    """Yield a folder with the sweep file, its host file and the reference results.

    `set_clock`: all sweeps load the library that can set the clock, because LD_PRELOAD is part of their environment.
    """
    with tempfile.TemporaryDirectory(prefix="psring-faults-") as name:
        work = Path(name)
        if set_clock:
            subprocess.run(["cc", "-shared", "-fPIC", "-o", work / "clock.so", CLOCK], check=True)
            os.environ["LD_PRELOAD"] = str(work / "clock.so")
        (work / "hosts").write_text("localhost slots=8\n")
        (work / "sweep.yaml").write_text(SWEEP.format(hosts=work / "hosts"))
        subprocess.run([*PSRING, "sweep", str(work / "sweep.yaml"), "--out", str(work / "reference")], check=True)
        yield work


def main() -> int:
    """Run the given cases; return 1 if a result was lost, duplicated or different, or a process was left."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(CASES)}; default: all")
    names = parser.parse_args().cases or list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"there is no case {unknown[0]!r}; cases are {', '.join(CASES)}")
    total: Counter[str] = Counter()
    with reference_folder(set_clock="clock_set_back" in names) as work:
        for name in names:
            total.update(check(name, work))
    print(f"results lost {total['lost']}, duplicated {total['duplicated']}, orphans {total['orphans']},", end=" ")
    print(f"different {total['different']}, temporary folders {total['folders']} in {len(names)} cases")
    return int(any(total.values()))


if __name__ == "__main__":
    sys.exit(main())
