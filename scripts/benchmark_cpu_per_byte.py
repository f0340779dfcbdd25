"""CPU seconds per gigabyte of the parameter server and of bare mpi4py that sends the same messages, on emulated nodes.

    python scripts/benchmark_cpu_per_byte.py [--repeats 3] [--link 200mbit] [--out DIR]

`Bare` has the dedicated server's traffic and nothing else: every worker sends all gradients in chunks and receives as
many bytes back, with nonblocking messages and one Waitall; the last ranks play the servers, and neither sum nor update.
Both run in psring's loop with compute: none, on links of the same rate, so that what the loop, the model's hooks and
waiting cost is in both. CPU is that of all ranks, gigabytes those that all ranks send. Goal: at most 1.3 times bare.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench import records
from bench.config import BadInput
from bench.intervals import median_interval
from bench.records import RunRecord
from bench.sweep.file import Sweep
from bench.sweep.run import run_sweep
from strategies.base import WorkerOptimizer
from strategies.closed_forms import Prediction
from strategies.volume import Volume

GOAL = 1.3
SIZES = ((3, 1), (4, 4))  # workers, servers
COMMON: dict[str, object] = {"model": "gpt-mini", "compute": "none", "warmup_steps": 2, "steps": 8}


class Bare(WorkerOptimizer):
    """Pushes and pulls of equal size between workers and the ranks that play servers, by mpi4py alone."""

    title, family = "bare mpi4py", "bare"

    @staticmethod
    def closed_form(options: Any, job: Any) -> Prediction:
        """Unknown: half of the ranks may play servers."""
        return Prediction(Volume.unknown())

    def synchronize(self) -> None:
        """Send all chunks to the servers and receive as many bytes; a server does the same for every worker."""
        from mpi4py import MPI  # imported here: the process that starts ranks must not start MPI itself

        comm, servers = self.group.comm, self._num_servers()
        workers = comm.size - servers
        chunks = self._chunks(servers)
        # A chunk's tag is its number: each belongs to the server that its number is congruent to.
        if comm.rank < workers:
            mine = [(workers + number % servers, number, chunk) for number, chunk in enumerate(chunks)]
        else:
            own = [(number, chunk) for number, chunk in enumerate(chunks) if number % servers == comm.rank - workers]
            mine = [(worker, number, chunk) for worker in range(workers) for number, chunk in own]
        receives = [comm.Irecv([self._buffer(peer, tag, chunk), MPI.BYTE], peer, tag) for peer, tag, chunk in mine]
        if comm.rank < workers:
            MPI.Request.Waitall([comm.Isend([chunk, MPI.BYTE], peer, tag) for peer, tag, chunk in mine])
            MPI.Request.Waitall(receives)
        else:
            self._reply_to_each(mine, receives, MPI.Request)
        self.counters.add(sum(chunk.nbytes for _, _, chunk in mine), sum(chunk.nbytes for _, _, chunk in mine), 1, 1)

    def _reply_to_each(self, mine: list[tuple[int, int, np.ndarray]], receives: list[Any], requests: Any) -> None:
        """Reply to a chunk's workers when all of them have sent it, as a server does that waits for the sum."""
        comm, sends = self.group.comm, []
        missing: dict[int, int] = {}
        for _, tag, _ in mine:
            missing[tag] = missing.get(tag, 0) + 1
        for _ in receives:
            index = requests.Waitany(receives)
            tag = mine[index][1]
            missing[tag] -= 1
            if missing[tag] == 0:
                sends += [comm.Isend(chunk, peer, tag) for peer, other, chunk in mine if other == tag]
        requests.Waitall(sends)

    def _num_servers(self) -> int:
        return {workers + servers: servers for workers, servers in SIZES}[self.group.comm.size]

    def _chunks(self, servers: int) -> list[np.ndarray]:
        """Return views of one vector of zeros, the messages of one copy of the gradients."""
        if not hasattr(self, "_vector"):
            nbytes = sum(parameter.numel() for parameter in self._parameters) * 4
            self._vector = np.zeros(nbytes, np.uint8)
            size = self.options.chunk_bytes // 4 * 4
            self._parts = [self._vector[begin : begin + size] for begin in range(0, nbytes, size)]
            self._received: dict[tuple[int, int], np.ndarray] = {}
        return self._parts

    def _buffer(self, peer: int, tag: int, chunk: np.ndarray) -> np.ndarray:
        return self._received.setdefault((peer, tag), np.empty_like(chunk))


def cpu_s_per_gb(record: RunRecord, servers: int) -> float:
    """Return the CPU seconds of all ranks over the gigabytes that all workers and servers have sent."""
    config, found = record.config, record.summary
    assert found is not None
    assert found.worker_cpu_s is not None
    cpu_s = config.num_workers * found.worker_cpu_s + config.num_servers * (found.server_cpu_s or 0.0)
    workers = config.num_workers if config.num_servers else config.num_workers - servers
    return cpu_s / (2 * workers * config.wire_bytes * config.total_steps / 1e9)


def main() -> None:
    """Parse the flags, measure, print a row per size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--link", default="200mbit")
    parser.add_argument("--out", type=Path, help="results folder; with the same one again, only what is missing is run")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            measure(arguments, arguments.out or Path(scratch, "out"))
    except BadInput as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def measure(arguments: argparse.Namespace, out: Path) -> None:
    """Run what is missing, then print CPU seconds per gigabyte and their ratio."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # so that ranks find Bare
    arms: list[dict[str, object]] = []
    for workers, servers in SIZES:
        arms.append({"strategy": "parameter_server", "num_workers": workers, "num_servers": servers})
        arms.append({"strategy": "benchmark_cpu_per_byte:Bare", "num_workers": workers + servers})
    sweep = Sweep.model_validate({
        "defaults": {**COMMON, "link": arguments.link}, "grid": arms, "repeats": arguments.repeats, "slowdown": 1,
    })  # fmt: skip
    run_sweep(sweep, "benchmark", out, Console(stderr=True))
    table = Table("workers + servers", "n", "CPU s per GB", "worker", "server", "bare", "ratio", f"at most {GOAL}")
    found = [record for record in records.read(out) if record.summary]
    for workers, servers in SIZES:
        here = [record for record in found if record.config.world_size == workers + servers]
        served, alone = ([r for r in here if (r.config.num_servers > 0) == yes] for yes in (True, False))
        ours, bare = ([cpu_s_per_gb(record, servers) for record in arm] for arm in (served, alone))
        if ours and bare:
            one, other = median_interval(ours).value, median_interval(bare).value
            means = [record.summary for record in served]
            shares = [sum(getattr(s, f"{role}_cpu_s") for s in means) / len(means) for role in ("worker", "server")]
            verdict = "met" if one / other <= GOAL else "MISSED"
            numbers = (f"{one:.2f}", *(f"{share:.2f} s" for share in shares), f"{other:.2f}", f"{one / other:.2f}")
            table.add_row(f"{workers} + {servers}", f"{len(ours)}, {len(bare)}", *numbers, verdict)
    Console().print(table)


if __name__ == "__main__":
    main()
