"""Provoke the faults of an emulated cluster; check that each ends in one clear line and leaves nothing behind.

    python scripts/check_cluster_faults.py        as root, about a minute

Prints one line per fault, then what was left behind in total: processes, network namespaces, changed sysctls.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench import records
from bench.mpi import find_launcher
from bench.nodes import cluster, layout
from bench.processes import PSRING
from strategies.environment import mpi_environment

MARK = "PSRING_FAULT"
OPEN_MPI_5 = {"mpirun": "prterun", "orted": "prted"}  # what its programs of these names execute
NAME = f"fault{os.getpid()}"
TIMEOUT_S = 60.0
SWEEP = """
defaults: {model: gpt-nano, steps: 1000, warmup_steps: 0, compute: emulated, emulated_forward_s: 0.1,
           emulated_backward_s: 0.1, patience_s: 0}
grid: [{strategy: ddp, num_workers: 3}]
cluster: {num_nodes: 3, link: 200mbit}
"""


@dataclass(frozen=True)
class Result:
    """How one fault ended: what was printed, how many processes were left, and whether that is as expected."""

    fault: str
    message: str
    orphans: int
    passed: bool


def main() -> int:
    """Provoke every fault; return 1 if one did not end as expected or left something behind."""
    if not cluster.has_privileges():
        print("skipped: making network namespaces needs root")
        return 0
    sysctls, namespaces = read_sysctls(), set(namespace_names())
    results = [provoke(fault, act) for fault, act in FAULTS.items()] + [refuse(*case) for case in REFUSALS]
    for result in results:
        print(f"{'ok ' if result.passed else 'BAD'} {result.fault}: {result.message}")
    orphans = sum(result.orphans for result in results)
    left, changed = set(namespace_names()) - namespaces, sysctls ^ read_sysctls()
    bad = sum(not result.passed for result in results)
    print(
        f"{len(results)} faults, {bad} ended badly; left behind: "
        f"{orphans} processes, {len(left)} namespaces, {len(changed)} changed sysctls"
    )
    return int(bool(bad or orphans or left or changed))


def provoke(fault: str, act: Callable[[str], str]) -> Result:
    """Run one fault, then count and kill the processes that it leaves."""
    mark = uuid.uuid4().hex
    try:
        message = act(mark)
        deadline = time.monotonic() + TIMEOUT_S / 4
        while list(marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        left = list(marked(mark))
        for process in left:
            process.kill()
    return Result(fault, message, len(left), bool(message) and "Traceback" not in message)


def start(mark: str, *arguments: str) -> subprocess.Popen[str]:
    """Start psring with a mark in its environment, which all its children inherit."""
    environ = {**os.environ, **mpi_environment(os.environ), MARK: mark}
    return subprocess.Popen(
        [*PSRING, *arguments], env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def marked(mark: str) -> Iterator[psutil.Process]:
    """Yield the processes that have this mark in their environment."""
    for process in psutil.process_iter():
        try:
            if process.cmdline() and process.environ().get(MARK) == mark:
                yield process
        except psutil.Error:
            continue


def running(mark: str, *words: str) -> list[psutil.Process]:
    """Return the marked processes that run a program of this name, or this subcommand of psring."""
    own, names = [*PSRING[1:], *words], (words[0], OPEN_MPI_5.get(words[0]))
    found = []
    for process in marked(mark):
        with contextlib.suppress(psutil.Error, IndexError):  # it has ended meanwhile
            command = process.cmdline()
            if command[1 : 1 + len(own)] == own or Path(command[0]).name in names:
                found.append(process)
    return found


def threads_of(process: psutil.Process) -> int:
    """Number of threads of a process, 0 if it has ended."""
    try:
        return process.num_threads()
    except psutil.Error:
        return 0


def await_ranks(mark: str, command: str) -> None:
    """Wait until three ranks run the command and have joined each other: MPI and the heartbeat have started threads."""
    deadline = time.monotonic() + TIMEOUT_S
    while sum(threads_of(process) > 3 for process in running(mark, command)) < 3:
        if time.monotonic() > deadline:
            raise TimeoutError("the ranks did not start")
        time.sleep(0.1)
    time.sleep(1.0)


def in_a_sweep(victim: str) -> Callable[[str], str]:
    """Return a fault that kills a process of a running sweep and returns its record's status and reason."""

    def act(mark: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            plan, out = Path(folder, "sweep.yaml"), Path(folder, "out")
            plan.write_text(SWEEP)
            sweep = start(mark, "sweep", str(plan), "--out", str(out))
            await_ranks(mark, "ranks")
            running(mark, victim)[-1].kill()
            sweep.communicate(timeout=TIMEOUT_S)
            if sweep.returncode == -signal.SIGKILL:
                return "the sweep is gone"
            (record,) = records.read(out)
            return f"{record.status}: {record.reason}"

    return act


def down_under_a_job(mark: str) -> str:
    """Remove a cluster while mpirun runs on it."""
    cluster.up(layout.make(NAME, 3, "200mbit"))
    run = [*PSRING, "run", "--strategy", "ddp", "--compute", "none", "--steps", "100000", "--patience-s", "0"]
    mpirun = [find_launcher("mpirun"), "-n", "3", "-H", "n0,n1,n2", "--bind-to", "none"]
    job = start(mark, "cluster", "exec", "--name", NAME, "n0", "--", *mpirun, *run)
    await_ranks(mark, "run")
    cluster.down(NAME)
    job.communicate(timeout=TIMEOUT_S)
    return f"the job is gone, exit code {job.returncode}"


def second_up(mark: str) -> str:
    """Bring the same cluster up twice."""
    cluster.up(layout.make(NAME, 2, "200mbit"))
    try:
        return refused(mark, "cluster", "up", "--name", NAME, "--num-nodes", "2", "--link", "200mbit")
    finally:
        cluster.down(NAME)


def refused(mark: str, *arguments: str) -> str:
    """Return psring's message if it is one line with exit code 2, else an empty string."""
    process = start(mark, *arguments)
    message = process.communicate(timeout=TIMEOUT_S)[0].strip()
    return message if process.returncode == 2 and "\n" not in message else ""


def refuse(fault: str, arguments: list[str]) -> Result:
    """Bring a cluster up with arguments that must be refused."""
    return provoke(fault, lambda mark: refused(mark, "cluster", "up", "--name", NAME, *arguments))


def without_privileges(mark: str) -> str:
    """Bring a cluster up without root's capabilities."""
    ended = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *PSRING, "cluster", "up", "--name", NAME,
         "--num-nodes", "2", "--link", "200mbit"],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env={**os.environ, MARK: mark},
    )  # fmt: skip
    return ended.stderr.strip() if ended.returncode == 2 else ""


def namespace_names() -> list[str]:
    """Names of the network namespaces that this script's clusters and sweeps make; others may come and go."""
    return [path.name for name in (NAME, "sweep") for path in layout.NAMESPACES.glob(f"psring-{name}-*")]


def read_sysctls() -> set[tuple[str, str]]:
    """Return every network sysctl of the host that can be read, as (path, value), without per-interface ones."""
    found = set()
    for path in Path("/proc/sys/net").rglob("*"):
        try:
            found.add((str(path), path.read_text()))
        except OSError:
            continue
    return {(name, value) for name, value in found if "/neigh/" not in name and "/conf/" not in name}


FAULTS: dict[str, Callable[[str], str]] = {
    "SIGKILL of the sweep": in_a_sweep("sweep"),
    "SIGKILL of mpirun": in_a_sweep("mpirun"),
    "SIGKILL of a rank": in_a_sweep("ranks"),
    "SIGKILL of a node's daemon": in_a_sweep("orted"),
    "down under a running job": down_under_a_job,
    "a second up of the same name": second_up,
    "no permission": without_privileges,
}
REFUSALS = [
    ("a rate of 0", ["--num-nodes", "2", "--link", "0mbit"]),
    ("300 nodes", ["--num-nodes", "300", "--link", "1mbit"]),
    ("an invalid delay", ["--num-nodes", "2", "--link", "1mbit", "--delay", "soon"]),
]

if __name__ == "__main__":
    sys.exit(main())
