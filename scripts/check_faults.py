"""Break a sweep in every way we know, resume it, and count what was lost, what came twice, and who was left behind.

    python scripts/check_faults.py [CASE ...]          # no CASE: all of them; about 10 minutes on 2 cores

A sweep of 24 cells runs once from nothing: the table that every case must come to. Each case starts from a copy of it
in which the runs of one world are missing, does its damage while they run, and is resumed. Disk full needs root, the
clock set back a C compiler: what the C library tells its callers is set back, not the machine's clock.
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

from bench import records

PSRING = [sys.executable, "-m", "bench.cli"]
MARKER = f"PSRING_FAULTS_{os.getpid()}"
DEADLINE_S = 240
ROOM_BYTES = 60_000
CLOCK = Path(__file__).with_name("clock_set_back.c")
SWEEP = """\
defaults: {{model: gpt-nano, block_size: 16, steps: 30, warmup_steps: 2, eval_batches: 0, timeout_s: 30,
           hostfile: {hosts}}}
grid:
  - {{strategy: parameter_server, num_servers: 1, num_workers: [1, 2], batch_size: [1, 2, 4]}}
  - {{strategy: [ddp, independent, ring_allreduce], num_workers: [2, 3], batch_size: [1, 2, 4]}}
"""


class Bench:
    """One case's folder, and the sweep that writes it."""

    def __init__(self, work: Path, mother: Path, world: Callable[[records.RunRecord], bool]) -> None:
        self.work, self.out = work, work / "case"
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(mother, self.out)
        kept = [record for record in records.read(mother) if not world(record)]
        (self.out / "runs.jsonl").write_text("".join(record.model_dump_json() + "\n" for record in kept))
        self.given = len(kept)

    def start(self, **environ: str) -> subprocess.Popen[str]:
        """Start the sweep."""
        self.process = subprocess.Popen(
            [*PSRING, "sweep", str(self.work / "sweep.yaml"), "--out", str(self.out)],
            env={**os.environ, MARKER: "1", **environ}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        return self.process

    def until(self, arrived: int, strategy: str = "") -> None:
        """Wait for so many new records, and for a run of a strategy to be under way."""
        names = {record.run_id: record.config.strategy for record in records.read(self.work / "mother")}
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            now = Path(self.out / ".running/now")
            with contextlib.suppress(OSError, ValueError):
                at = names[json.loads(now.read_text())["run_id"]]
                if self.lines() - self.given >= arrived and strategy in ("", at):
                    return
            time.sleep(0.01)
        said = self.process.communicate()[0] if self.process.poll() is not None else ""
        raise SystemExit(f"check_faults: {arrived} records and a run of {strategy or 'any'} never came: {said}")

    def lines(self) -> int:
        """Lines of runs.jsonl."""
        return (self.out / "runs.jsonl").read_text().count("\n")


def processes() -> list[psutil.Process]:
    """Everything that a case has started and that still lives."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if MARKER in process.environ() and process.pid != os.getpid() and process.status() != "zombie":
                found.append(process)
    return found


def rank(number: int) -> int:
    """The process that is this rank."""
    for process in processes():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("OMPI_COMM_WORLD_RANK") == str(number) and "ranks" in process.cmdline():
                return process.pid
    raise SystemExit(f"check_faults: rank {number} is not there")


def launcher() -> int:
    """The process that is mpirun."""
    return next(p.pid for p in processes() if p.cmdline()[:1] and p.cmdline()[0].endswith("mpirun"))


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a sweep; return its exit code and the last line that it printed."""
    said, _ = process.communicate(timeout=DEADLINE_S)
    return process.returncode, (said.strip().splitlines() or [""])[-1]


def kill(what: str, number: int = 0) -> Callable[[Bench], tuple[int, str]]:
    """A case that sends SIGKILL."""

    def strike(bench: Bench) -> tuple[int, str]:
        process = bench.start()
        bench.until(1, "parameter_server" if what == "rank" else "")
        os.kill(
            {"sweep": lambda: process.pid, "mpirun": launcher, "rank": lambda: rank(number)}[what](), signal.SIGKILL
        )
        return end(process)

    return strike


def ask(*signs: signal.Signals) -> Callable[[Bench], tuple[int, str]]:
    """A case that sends the sweep signals it can handle."""

    def strike(bench: Bench) -> tuple[int, str]:
        process = bench.start()
        bench.until(1)
        for sign in signs:
            process.send_signal(sign)
            time.sleep(0.1)
        return end(process)

    return strike


def stopped(bench: Bench) -> tuple[int, str]:
    """SIGSTOP of a rank: its neighbour misses it, and the reason says where the others waited."""
    process = bench.start()
    bench.until(1, "parameter_server")
    os.kill(rank(1), signal.SIGSTOP)
    code, _ = end(process)
    late = [record.reason for record in records.read(bench.out) if "does not answer" in record.reason]
    assert late, "nobody missed the stopped rank"
    return code, late[0]


def disk_full(bench: Bench) -> tuple[int, str]:
    """A file system that takes a few more records and no more."""
    small = bench.work / "small"
    small.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", small], check=True)
    try:
        shutil.copytree(bench.out, small, dirs_exist_ok=True)
        room = os.statvfs(small)
        used = (room.f_blocks - room.f_bfree) * room.f_frsize
        subprocess.run(["mount", "-o", f"remount,size={used + ROOM_BYTES}", small], check=True)
        case, bench.out = bench.out, small
        code, said = end(bench.start())
        assert (code, "No space left" in said) == (1, True), said
        subprocess.run(["mount", "-o", "remount,size=100m", small], check=True)
        resume(bench)
        shutil.rmtree(case)
        shutil.copytree(small, case)
        bench.out = case
    finally:
        subprocess.run(["umount", "-l", small], check=True)
    return code, said


def truncated(bench: Bench) -> tuple[int, str]:
    """The last line of runs.jsonl half written."""
    file = bench.out / "runs.jsonl"
    file.write_text(file.read_text()[:-100])
    bench.given -= 1  # that one is lost by intent
    return 0, "the last line cut by 100 bytes"


def no_horovod(bench: Bench) -> tuple[int, str]:
    """A Horovod that cannot be imported."""
    fake = bench.work / "fake/horovod"
    fake.mkdir(parents=True, exist_ok=True)
    (fake / "__init__.py").write_text("raise ImportError('libmpi.so.40: not found')")
    return end(bench.start(PYTHONPATH=str(fake.parent)))


def no_host(bench: Bench) -> tuple[int, str]:
    """A host file with a host that is not there."""
    hosts = bench.work / "hosts"
    good = hosts.read_text()
    hosts.write_text("nowhere.invalid slots=8\n")
    try:
        return end(bench.start())
    finally:
        hosts.write_text(good)


def clock_set_back(bench: Bench) -> tuple[int, str]:
    """The time of day jumps back by an hour while the sweep runs."""
    shim, mark = bench.work / "clock.so", bench.work / "set_back"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, CLOCK], check=True)
    process = bench.start(LD_PRELOAD=str(shim), CLOCK_SET_BACK=str(mark))
    bench.until(1)
    mark.touch()
    code, said = end(process)
    found = records.read(bench.out)[bench.given :]
    assert any(b.started_at < a.started_at for a, b in itertools.pairwise(found)), "the clock did not jump"
    assert all(0 < (record.wall_s or 0) < DEADLINE_S for record in found)
    return code, said


World = Callable[[records.RunRecord], bool]
THREE: World = lambda record: record.config.world_size == 3 and record.config.strategy != "ring_allreduce"  # noqa: E731
RING: World = lambda record: record.config.world_size == 2 and record.config.strategy == "ring_allreduce"  # noqa: E731
CASES: dict[str, tuple[Callable[[Bench], tuple[int, str]], World]] = {
    "sweep_killed": (kill("sweep"), THREE),
    "mpirun_killed": (kill("mpirun"), THREE),
    "worker_killed": (kill("rank", 0), THREE),
    "server_killed": (kill("rank", 2), THREE),
    "rank_stopped": (stopped, THREE),
    "ctrl_c": (ask(signal.SIGINT), THREE),
    "ctrl_c_twice": (ask(signal.SIGINT, signal.SIGINT), THREE),
    "terminated": (ask(signal.SIGTERM), THREE),
    "disk_full": (disk_full, THREE),
    "line_truncated": (truncated, lambda record: False),
    "no_horovod": (no_horovod, RING),
    "no_host": (no_host, RING),
    "clock_set_back": (clock_set_back, THREE),
}


def resume(bench: Bench) -> None:
    """Run the sweep again, without harm."""
    code, said = end(bench.start())
    assert code == 0, said


def check(name: str, work: Path) -> Counter[str]:
    """Do one case and return what it cost."""
    strike, world = CASES[name]
    mother = {record.run_id: record for record in records.read(work / "mother")}
    bench = Bench(work, work / "mother", world)
    code, said = strike(bench)
    orphans = left_behind()
    kept = [record.run_id for record in records.read(bench.out) if record.status == "ok"]
    resume(bench)
    lines = [json.loads(line) for line in (bench.out / "runs.jsonl").read_text().splitlines()]
    good = Counter(line["run_id"] for line in lines if line["status"] == "ok")
    final = {record.run_id: record for record in records.read(bench.out) if record.status == "ok"}
    differ = [
        key for key in mother
        if key in final and abs(final[key].summary.final_loss - mother[key].summary.final_loss) > 1e-4
    ]  # fmt: skip
    found = Counter(
        lost=len(set(kept) - final.keys()) + len(mother.keys() - final.keys()) + max(0, bench.given - len(kept)),
        duplicated=sum(count - 1 for count in good.values()),
        orphans=orphans + left_behind(),
        different=len(differ) + len(final.keys() - mother.keys()),
    )
    print(f"{name}: exit {code}, {len(kept)} of {len(mother)} kept: {said[:160]}", flush=True)
    print(f"  resumed to {len(final)} of {len(mother)}; {dict(found)}", flush=True)
    return found


def left_behind() -> int:
    """How many processes are left some seconds after the sweep has ended; they are ended."""
    deadline = time.monotonic() + 10
    while processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    orphans = processes()
    for process in orphans:
        print("  left behind:", process.pid, " ".join(process.cmdline())[:120])
        process.kill()
    return len(orphans)


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder with the sweep, its host file and the table that every case must come to."""
    with tempfile.TemporaryDirectory(prefix="psring-faults-") as name:
        work = Path(name)
        (work / "hosts").write_text("localhost slots=8\n")
        (work / "sweep.yaml").write_text(SWEEP.format(hosts=work / "hosts"))
        subprocess.run([*PSRING, "sweep", str(work / "sweep.yaml"), "--out", str(work / "mother")], check=True)
        yield work


def main() -> int:
    """Do the cases that were asked for; 1 if anything was lost, came twice or was left behind."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(CASES)}; none: all")
    wanted = parser.parse_args().cases or list(CASES)
    unknown = [name for name in wanted if name not in CASES]
    if unknown:
        parser.error(f"there is no case {unknown[0]!r}; there are {', '.join(CASES)}")
    total: Counter[str] = Counter()
    with workplace() as work:
        for name in wanted:
            total.update(check(name, work))
    print(f"results lost {total['lost']}, duplicated {total['duplicated']}, orphans {total['orphans']},", end=" ")
    print(f"different {total['different']} in {len(wanted)} cases")
    return int(any(total.values()))


if __name__ == "__main__":
    sys.exit(main())
