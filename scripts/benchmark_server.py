"""How near the parameter server comes to what its network allows, on emulated nodes (needs root).

    python scripts/benchmark_server.py [--repeats 5] [--link 200mbit] [--only colocated]

Each row is a placement of servers. Its step time is divided by the lower bound that the links set, with M bytes of
gradients (gpt-mini in fp32) and B the goodput of a link, its rate times 1448/1514 (payload of a full Ethernet frame):
dedicated max(M/B, W·M/(S·B)); colocated 2(n-1)/n·M/B; mixed 2n(n-1)/(n²+kn-2k)·M/B; with compute
t_f + max(t_b, the above). The model sleeps: its layers have the GPT's parameters and hand out their gradients in
backward's order. Rows are interleaved and each launch is one sample: printed is the median over launches of the ratio
and its 95 % bootstrap interval. The first row is the duplex factor φ: how much longer two nodes take to send each
other a copy at once than one takes to send the other one, 1 for full duplex, 2 for half.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config import RunConfig
from bench.emulate import cluster
from bench.launch import find_launcher, mpi_environment
from bench.stats import median_interval

NAME = f"bench{os.getpid()}"
WARMUP = 4
PAYLOAD = 1448 / 1514
DEADLINE_S = 120


@dataclass(frozen=True)
class Row:
    """One placement, the time its model sleeps (seconds), and the largest ratio that is good enough."""

    placement: str
    workers: int
    servers: int
    target: float
    t_f: float = 0.0
    t_b: float = 0.0

    @property
    def config(self) -> RunConfig:
        return RunConfig(
            strategy="parameter_server", placement=self.placement, num_workers=self.workers,
            num_servers=self.servers, model="gpt-mini", optimizer="sgd", **json.loads(os.environ.get("KNOBS", "{}")),
        )  # type: ignore[arg-type]  # fmt: skip

    def bound_s(self, rate: float) -> float:
        """The lower bound of a step on links of `rate` bits per second."""
        n, k = self.workers, self.servers
        copy_s = self.config.wire_bytes / (rate / 8 * PAYLOAD)
        copies = {
            "dedicated": max(1.0, n / k) if k else 0.0,
            "colocated": 2 * (n - 1) / n,
            "mixed": 2 * n * (n - 1) / (n * n + k * n - 2 * k),
        }[self.placement]
        return self.t_f + max(self.t_b, copies * copy_s)

    def __str__(self) -> str:
        compute = f", t_f {self.t_f} s, t_b {self.t_b} s" if self.t_f else ""
        return f"{self.placement}, {self.workers} workers + {self.servers} servers{compute}"


ROWS = [
    Row("dedicated", 3, 1, 1.12),
    Row("dedicated", 5, 3, 1.15),
    Row("dedicated", 4, 4, 1.15),
    Row("colocated", 4, 0, 1.15),
    Row("mixed", 4, 2, 1.20),
    Row("dedicated", 4, 4, 1.15, 0.1, 0.2),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--link", default="200mbit")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--row", type=int, help="what a rank runs; not for people")
    arguments = parser.parse_args()
    if arguments.row is not None:
        run_rank(arguments.row, arguments.steps)
        return
    rows = [number for number, row in enumerate(ROWS) if arguments.only in str(row)]
    lab = cluster.make(NAME, max(ROWS[number].config.world_size for number in rows), arguments.link)
    cluster.up(lab)
    try:
        samples: dict[int, list[float]] = {number: [] for number in [-1, *rows]}
        for _ in range(arguments.repeats):
            for number, found in samples.items():
                found.append(launch(lab, number, arguments.steps))
                print(number, found[-1], file=sys.stderr, flush=True)
    finally:
        cluster.down(NAME)
    for number, found in samples.items():
        show(number, found, float(lab.rates[0]))


def launch(lab: cluster.Cluster, number: int, steps: int) -> float:
    """Run one row once, one rank per node; return the median step time in seconds (or φ)."""
    size = ROWS[number].config.world_size if number >= 0 else 2
    psring = str(Path(sys.executable).with_name("psring"))
    network = f"{cluster.NETWORK}.0/24"
    mca = {"plm_rsh_agent": f"{psring} cluster agent", "plm_rsh_no_tree_spawn": "1", "pml": "ob1", "btl": "tcp,self"}
    mca |= {"oob_tcp_if_include": network, "btl_tcp_if_include": network}
    options = [word for name, value in mca.items() for word in ("--mca", name, value)]
    ended = subprocess.run(
        [psring, "cluster", "--name", lab.name, "exec", "n0", "--", find_launcher("mpirun"), "-n", str(size),
         "-H", ",".join(lab.nodes[:size]), "--bind-to", "none", *options,
         sys.executable, __file__, "--row", str(number), "--steps", str(steps)],
        env={**os.environ, **mpi_environment(os.environ)}, timeout=DEADLINE_S, check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    return float(ended.stdout.split()[-1])


def show(number: int, samples: list[float], rate: float) -> None:
    """Print a row's ratio beside what it may be at most."""
    row = ROWS[number] if number >= 0 else None
    bound = row.bound_s(rate) if row else 1.0
    found = median_interval(sample / bound for sample in samples)
    text = f"{row or 'duplex factor'!s:60} {found.value:.3f} ({found.low:.3f}-{found.high:.3f}), n={len(samples)}"
    if row:
        verdict = "met" if found.value <= row.target else "MISSED"
        text += f", of {bound:.3f} s, at most {row.target}: {verdict}"
    print(text, flush=True)


def run_rank(number: int, steps: int) -> None:
    """Do one rank's part of a row; rank 0 prints the median over steps of the slowest worker's time."""
    os.environ.update(mpi_environment(os.environ))
    from mpi4py import MPI

    if number < 0:
        factor = duplex_factor(MPI.COMM_WORLD, RunConfig().chunk_bytes)
        print(factor if MPI.COMM_WORLD.rank == 0 else "", flush=True)
        return
    import torch

    from bench.group import MPIGroup
    from bench.train import build_model, build_optimizer
    from bench.worker import make_options
    from strategies import create

    torch.set_num_threads(1)
    row = ROWS[number]
    strategy = create("parameter_server", MPIGroup(), make_options(row.config))
    model = build_model(row.config, torch.device("meta" if strategy.is_server else "cpu"))
    asleep = sleeping(model, row.t_f, row.t_b)
    strategy.prepare(asleep, build_optimizer(row.config, model))
    times = []
    if strategy.is_server:
        strategy.serve()
    else:
        for _ in range(WARMUP + steps):
            began = time.perf_counter()
            asleep(torch.zeros(())).backward()
            strategy.synchronize()
            strategy.step()
            times.append(time.perf_counter() - began)
    strategy.close()
    workers = [each for each in MPI.COMM_WORLD.gather(times[WARMUP:]) or [] if each]
    if MPI.COMM_WORLD.rank == 0:
        print(statistics.median(map(max, zip(*workers, strict=True))), flush=True)


def sleeping(model: Any, t_f: float, t_b: float) -> Any:
    """Return a module with the model's parameters whose forward and backward sleep, layer by layer."""
    import torch
    from torch import nn

    class Asleep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, layer: Layer, x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            ctx.layer = layer
            time.sleep(layer.forward_s)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
            time.sleep(ctx.layer.backward_s)
            return (None, *upstream, *(torch.zeros_like(p) for p in ctx.layer.parameters()))

    class Layer(nn.Module):
        def __init__(self, original: nn.Module, share: float) -> None:
            super().__init__()
            self.forward_s, self.backward_s = t_f * share, t_b * share
            for name, parameter in original.named_parameters(recurse=False):
                self.register_parameter(name, parameter)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = Asleep.apply(self, x, *self.parameters())
            return result

    layers = [module for module in model.modules() if list(module.parameters(recurse=False))]
    total = sum(p.numel() for p in model.parameters())
    shares = [sum(p.numel() for p in layer.parameters(recurse=False)) / total for layer in layers]
    return nn.Sequential(*(Layer(layer, share) for layer, share in zip(layers, shares, strict=True)))


def duplex_factor(comm: Any, chunk_bytes: int, nbytes: int = 10_000_000) -> float:
    """Return the time in which two ranks send each other a copy at once over that of one sending it alone."""
    import numpy as np

    other, chunks = 1 - comm.rank, nbytes // chunk_bytes
    data = np.zeros((chunks, chunk_bytes), np.uint8)
    into = np.zeros_like(data)

    def exchange(sends: bool, receives: bool) -> float:
        comm.Barrier()
        began = time.perf_counter()
        requests = [comm.Irecv(into[i], other, i) for i in range(chunks if receives else 0)]
        requests += [comm.Isend(data[i], other, i) for i in range(chunks if sends else 0)]
        type(requests[0]).Waitall(requests)
        comm.Barrier()
        return time.perf_counter() - began

    exchange(True, True)
    alone = statistics.median(exchange(comm.rank == 0, comm.rank == 1) for _ in range(3))
    return statistics.median(exchange(True, True) for _ in range(3)) / alone


if __name__ == "__main__":
    main()
