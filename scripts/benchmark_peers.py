"""psring's parameter server beside two that people use, and colocated beside what most people use instead.

    pip install -e '.[peers]'; python scripts/benchmark_peers.py [--compute none] [--launches 5] [--steps 20]

2 workers and 1 server on this machine (colocated and DDP: 2 workers alone), gpt-mini (10.9 MB of gradients up, as many
of weights down), SGD with momentum, each update of both workers' gradients. With --compute none gradients are zeros
from memory: communication alone. Arms run by turns, each launch in fresh processes, so that drift hits all alike; the
launch is the sample. Where a hypervisor gave more than 5 % of the cores to others during a launch, whoever's it was, it
is lost and made up for by another round of all. The peers are in scripts/peers, each as its own documentation writes
it. Transports are everybody's default (psring's: memory that workers and server share), or, in the arms that say so,
TCP: all of those in a network of their own (ip and unshare make it), whose congestion control is --congestion-control,
for where a machine's own is bbr its pacing takes a quarter of a step (own: no network is made). psring's messages are
of --chunk-bytes (over TCP half as much) and without a window, for its defaults are made for links of up to 10 Gbit/s;
where nobody computes its ranks poll for POLL_S before they sleep, as RPC's do without end. Printed: steps/s, and
psring's over each peer's, with 95 % bootstrap intervals.

bare MPI is no parameter server, but the same messages, sums and updates in plain mpi4py: what of a step is MPI's own.

Unfair to the peers: they do not overlap a step's communication with its backward pass; their documentation does not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import mpi
from bench.config import BadInput, RunConfig, make_config
from bench.intervals import median_interval, ratio_interval
from bench.records import read
from bench.sweep import launch

PEERS = Path(__file__).parent / "peers"
DEADLINE_S = 180.0
POLL_S = 5e-4
MOST_STOLEN_SHARE = 0.05  # of the cores, by other virtual machines, during a launch that counts
MOST_ROUNDS = 4  # of launches of all arms, for each that is asked for
# A loopback that nobody else uses, and an address, for Open MPI does not use 127.0.0.1.
NETWORK = """
ip link add psring0 type veth peer name psring1
ip address add 10.0.0.1/24 dev psring0
for link in psring0 psring1 lo; do ip link set $link up; done
echo $CONGESTION_CONTROL > /proc/sys/net/ipv4/tcp_congestion_control
exec "$@"
"""
Arm = Callable[[Path], float]  # runs one launch in a scratch folder, returns its median step, seconds


def main() -> None:
    """Read what is asked for, and measure it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--compute", choices=["none", "real"], default="none")
    parser.add_argument("--model", default="gpt-mini")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--launches", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--chunk-bytes", type=int, default=1_000_000)
    parser.add_argument("--congestion-control", choices=["reno", "cubic", "own"], default="reno")
    parser.add_argument("--only", default="", help="arms whose name contains this")
    asked = parser.parse_args()
    if asked.launches < 1:
        parser.error(f"--launches: at least 1, not {asked.launches}")
    try:
        everyone = make_arms(asked)
    except BadInput as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    arms = {name: arm for name, arm in everyone.items() if asked.only in name}
    if not arms:
        parser.error(f"--only: no arm's name contains {asked.only!r}; there are {'; '.join(everyone)}")
    measure(arms, asked.launches)


def measure(arms: dict[str, Arm], launches: int) -> None:
    """Launch all arms by turns until each has as many launches that count, or too many were lost; print the table."""
    console = Console(width=130, highlight=False)
    samples: dict[str, list[float]] = {name: [] for name in arms}
    with contextlib.suppress(KeyboardInterrupt):  # show what there is
        for _ in range(MOST_ROUNDS * launches):
            for name, arm in arms.items():
                samples[name] += launch_once(name, arm, console)
            if min(map(len, samples.values())) >= launches:
                break
    show(samples, console)


def launch_once(name: str, arm: Arm, console: Console) -> list[float]:
    """The median step of one launch, seconds; nothing if other machines took the cores meanwhile."""
    began, stolen_s = time.monotonic(), stolen_cpu_s()
    with tempfile.TemporaryDirectory() as scratch:
        step_s = arm(Path(scratch))
    share = (stolen_cpu_s() - stolen_s) / (time.monotonic() - began) / (os.cpu_count() or 1)
    lost = share > MOST_STOLEN_SHARE
    console.print(f"{name}: {1 / step_s:.2f} steps/s, {share:.0%} of the cores stolen{': lost' * lost}")
    return [] if lost else [step_s]


def stolen_cpu_s() -> float:
    """What the hypervisor has given to other machines while this one could have used it (proc(5)), seconds."""
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) / os.sysconf("SC_CLK_TCK")


def make_arms(asked: argparse.Namespace) -> dict[str, Arm]:
    """Every system that takes part, ours first."""
    common = {
        "compute": asked.compute, "model": asked.model, "batch_size": asked.batch_size, "steps": asked.steps,
        "warmup_steps": 5, "eval_batches": 0, "optimizer": "sgd", "num_workers": 2,
    }  # fmt: skip
    poll_s = POLL_S if asked.compute == "none" else 0.0
    fast = {"chunk_bytes": asked.chunk_bytes, "window_bytes": None, "poll_s": poll_s}
    server = make_config({**common, **fast, "strategy": "parameter_server", "num_servers": 1}, "flags")
    # As the peers' sockets the kernel's own; and no message is copied but by the kernel.
    sockets = {"chunk_bytes": asked.chunk_bytes // 2, "socket_bytes": None, "eager_limit_bytes": 4096}
    over_tcp = server.model_copy(update={"shared_memory": False, **sockets})
    colocated = server.model_copy(update={"placement": "colocated", "num_servers": 0})
    ddp = make_config({**common, "strategy": "ddp"}, "flags")
    tcp = asked.congestion_control
    bare = {
        "bare MPI": partial(run_bare, server),
        "bare MPI, TCP": partial(run_bare, over_tcp, tcp=tcp),
    }
    return {
        "psring, colocated": partial(run_psring, colocated),
        "DDP": partial(run_psring, ddp),
        "psring": partial(run_psring, server),
        "psring, TCP": partial(run_psring, over_tcp, tcp=tcp),
        "torch RPC": partial(run_peer, "torch_rpc", server),
        "torch RPC, TCP": partial(run_peer, "torch_rpc", server, tcp=tcp),
        "Ray": partial(run_peer, "ray_actors", server),
        **(bare if asked.compute == "none" else {}),
    }


def run_psring(config: RunConfig, scratch: Path, tcp: str = "") -> float:
    """One `psring run`; over TCP with that congestion control, if any."""
    argv = launch.command(config, ["run", *launch.run_flags(config), "--out", str(scratch / "out")])
    end(held_to_tcp(argv, tcp) if tcp else argv, scratch / "log")
    (record,) = read(scratch / "out")
    assert record.summary is not None, record.reason
    return record.summary.step_s


def run_bare(config: RunConfig, scratch: Path, tcp: str = "") -> float:
    """One launch of what MPI, sums and updates alone take: no peer."""
    settings = [f"{name}={value}" for name, value in mpi.tcp_settings(config).items()]
    program = ["env", *settings, sys.executable, str(PEERS / "bare_mpi.py"), "--config", config.model_dump_json()]
    argv = [*launch.launcher_prefix(config), *program]
    return median_step(end(held_to_tcp(argv, tcp) if tcp else argv, scratch / "log"))


def held_to_tcp(argv: list[str], congestion_control: str) -> list[str]:
    """The same command with Open MPI's sockets as its only transport between ranks."""
    return in_network(["tcp,self" if word == "^openib" else word for word in argv], congestion_control)


def run_peer(module: str, config: RunConfig, scratch: Path, tcp: str = "") -> float:
    """One launch of a peer, which prints the times of its steps."""
    argv = [sys.executable, str(PEERS / f"{module}.py"), "--config", config.model_dump_json()]
    return median_step(end(in_network([*argv, "--tcp"], tcp) if tcp else argv, scratch / "log"))


def in_network(argv: list[str], congestion_control: str) -> list[str]:
    """The same command in a network of its own; on this machine's for the machine's own congestion control."""
    if congestion_control == "own":
        return argv
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    name = f"CONGESTION_CONTROL={congestion_control}"
    return ["env", name, "unshare", "--net", *user, "sh", "-ec", NETWORK, "sh", *argv]


def median_step(lines: list[str]) -> float:
    """The median of the steps that a peer printed, seconds."""
    (steps,) = (json.loads(line.removeprefix("STEPS ")) for line in lines if line.startswith("STEPS "))
    return statistics.median(steps)


def end(argv: list[str], log: Path) -> list[str]:
    """Run a command to its end, return what it printed."""
    deadline = time.monotonic() + DEADLINE_S
    outcome = launch.run(argv, launch.environment(RunConfig()), log, lambda: deadline)
    if outcome.returncode != 0:
        raise SystemExit(f"{' '.join(argv[:6])} failed:\n{outcome.output}")
    return log.read_text(errors="replace").splitlines()


def show(samples: dict[str, list[float]], console: Console) -> None:
    """Print each system's rate, and ours over it on the same transport."""
    table = Table("system", "n", "steps/s", "psring's like it", "over it")
    for name, step_s in samples.items():
        rate = median_interval(1 / s for s in step_s)
        ours = "psring, colocated" if name == "DDP" else "psring, TCP" if name.endswith("TCP") else "psring"
        rival = not name.startswith("psring") and ours in samples
        cells = (ours, text(*ratio_interval(step_s, samples[ours]))) if rival else ("", "")
        table.add_row(name, str(len(step_s)), text(*rate), *cells)
    console.print(table)


def text(value: float, low: float, high: float) -> str:
    """A value and its interval."""
    return f"{value:.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    main()
