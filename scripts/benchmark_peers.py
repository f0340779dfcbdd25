"""Compare psring's parameter server with torch RPC's and Ray's, and its colocated form with DDP.

    pip install -e '.[peers]'; python scripts/benchmark_peers.py [--compute none] [--launches 5] [--steps 20]

2 workers and 1 server on this machine (colocated and DDP: 2 workers), gpt-mini (10.9 MB of gradients and as many of
weights per step), SGD with momentum, every update of both workers' gradients. --compute none: gradients are zeros in
memory, so that only communication is measured. The systems take turns, each launch in new processes; the launch is the
sample. A launch during which a hypervisor gave more than 5 % of the cores to others is discarded, and another round is
run. The peers are in scripts/peers, written as in their own documentation.

Transports are the defaults (psring's: memory that workers and server share) or, where named, TCP in a network namespace
(made with ip and unshare) with --congestion-control: a machine's bbr would spend a quarter of a step on pacing (own:
the machine's network). psring's messages have --chunk-bytes (over TCP half of it) and no window: its defaults suit
links of up to 10 Gbit/s. With --compute none its ranks poll for POLL_S before they sleep; RPC's poll for ever. Prints
steps/s and psring's over each peer's, with 95 % intervals. `bare MPI` is the same work in plain mpi4py.

Unfair to the peers: they do not overlap communication with backward, as their documentation does not.
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
from bench.intervals import median_interval
from bench.records import read
from bench.report.verdicts import unpaired
from bench.sweep import launch

PEERS = Path(__file__).parent / "peers"
LAUNCH_TIMEOUT_S = 180.0
POLL_S = 5e-4
MAX_STOLEN_SHARE = 0.05  # of the cores by other virtual machines, during a launch
MAX_ROUNDS = 4  # per requested launch
# A veth pair with an address of its own: Open MPI does not use 127.0.0.1.
NETWORK = """
ip link add psring0 type veth peer name psring1
ip address add 10.0.0.1/24 dev psring0
for link in psring0 psring1 lo; do ip link set $link up; done
echo $CONGESTION_CONTROL > /proc/sys/net/ipv4/tcp_congestion_control
exec "$@"
"""
System = Callable[[Path], float]  # runs one launch in a scratch folder and returns its median step in seconds


def main() -> None:
    """Parse the flags and measure the selected systems."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--compute", choices=["none", "real"], default="none")
    parser.add_argument("--model", default="gpt-mini")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--launches", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--chunk-bytes", type=int, default=1_000_000)
    parser.add_argument("--congestion-control", choices=["reno", "cubic", "own"], default="reno")
    parser.add_argument("--only", default="", help="systems whose name contains this")
    flags = parser.parse_args()
    if flags.launches < 1:
        parser.error(f"--launches: at least 1, not {flags.launches}")
    try:
        systems = make_systems(flags)
    except BadInput as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    selected = {name: system for name, system in systems.items() if flags.only in name}
    if not selected:
        parser.error(f"--only: no system's name contains {flags.only!r}; there are {'; '.join(systems)}")
    measure(selected, flags.launches)


def measure(systems: dict[str, System], launches: int) -> None:
    """Launch the systems in turn until each has enough undisturbed launches, at most MAX_ROUNDS; print the table."""
    console = Console(width=130, highlight=False)
    samples: dict[str, list[float]] = {name: [] for name in systems}
    with contextlib.suppress(KeyboardInterrupt):  # show the launches so far
        for _ in range(MAX_ROUNDS * launches):
            for name, system in systems.items():
                samples[name] += launch_once(name, system, console)
            if min(map(len, samples.values())) >= launches:
                break
    show(samples, console)


def launch_once(name: str, system: System, console: Console) -> list[float]:
    """Return the median step of one launch, seconds; an empty list if other machines took too much CPU."""
    began, stolen_s = time.monotonic(), stolen_cpu_s()
    with tempfile.TemporaryDirectory() as scratch:
        step_s = system(Path(scratch))
    share = (stolen_cpu_s() - stolen_s) / (time.monotonic() - began) / (os.cpu_count() or 1)
    discarded = share > MAX_STOLEN_SHARE
    console.print(f"{name}: {1 / step_s:.2f} steps/s, {share:.0%} of the cores stolen{': discarded' * discarded}")
    return [] if discarded else [step_s]


def stolen_cpu_s() -> float:
    """CPU seconds that the hypervisor has given to other machines (steal, proc(5))."""
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) / os.sysconf("SC_CLK_TCK")


def make_systems(flags: argparse.Namespace) -> dict[str, System]:
    """Return every system by name, psring's first."""
    common = {
        "compute": flags.compute, "model": flags.model, "batch_size": flags.batch_size, "steps": flags.steps,
        "warmup_steps": 5, "eval_batches": 0, "optimizer": "sgd", "num_workers": 2,
    }  # fmt: skip
    poll_s = POLL_S if flags.compute == "none" else 0.0
    fast = {"chunk_bytes": flags.chunk_bytes, "window_bytes": None, "poll_s": poll_s}
    server = make_config({**common, **fast, "strategy": "parameter_server", "num_servers": 1}, "flags")
    # The kernel's default socket buffers, as the peers have; every message by rendezvous, without an extra copy.
    sockets = {"chunk_bytes": flags.chunk_bytes // 2, "socket_bytes": None, "eager_limit_bytes": 4096}
    over_tcp = server.model_copy(update={"shared_memory": False, **sockets})
    colocated = server.model_copy(update={"placement": "colocated", "num_servers": 0})
    ddp = make_config({**common, "strategy": "ddp"}, "flags")
    tcp = flags.congestion_control
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
        **(bare if flags.compute == "none" else {}),
    }


def run_psring(config: RunConfig, scratch: Path, tcp: str = "") -> float:
    """Run `psring run`, over TCP if a congestion control is given."""
    argv = launch.command(config, ["run", *launch.run_flags(config), "--out", str(scratch / "out")])
    run_to_end(over_tcp_only(argv, tcp) if tcp else argv, scratch / "log")
    (record,) = read(scratch / "out")
    assert record.summary is not None, record.reason
    return record.summary.step_s


def run_bare(config: RunConfig, scratch: Path, tcp: str = "") -> float:
    """Run the messages, sums and updates in plain mpi4py."""
    settings = [f"{name}={value}" for name, value in mpi.tcp_settings(config).items()]
    program = ["env", *settings, sys.executable, str(PEERS / "bare_mpi.py"), "--config", config.model_dump_json()]
    argv = [*launch.launcher_prefix(config), *program]
    return median_step(run_to_end(over_tcp_only(argv, tcp) if tcp else argv, scratch / "log"))


def over_tcp_only(argv: list[str], congestion_control: str) -> list[str]:
    """Return the command with TCP as Open MPI's only transport, in a network of its own."""
    return in_network(["tcp,self" if word.startswith("^openib") else word for word in argv], congestion_control)


def run_peer(module: str, config: RunConfig, scratch: Path, tcp: str = "") -> float:
    """Run a peer, which prints the times of its steps."""
    argv = [sys.executable, str(PEERS / f"{module}.py"), "--config", config.model_dump_json()]
    return median_step(run_to_end(in_network([*argv, "--tcp"], tcp) if tcp else argv, scratch / "log"))


def in_network(argv: list[str], congestion_control: str) -> list[str]:
    """Return the command in a network namespace with this congestion control; `own`: unchanged."""
    if congestion_control == "own":
        return argv
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    name = f"CONGESTION_CONTROL={congestion_control}"
    return ["env", name, "unshare", "--net", *user, "sh", "-ec", NETWORK, "sh", *argv]


def median_step(lines: list[str]) -> float:
    """Return the median of the steps that a peer printed, seconds."""
    (steps,) = (json.loads(line.removeprefix("STEPS ")) for line in lines if line.startswith("STEPS "))
    return statistics.median(steps)


def run_to_end(argv: list[str], log: Path) -> list[str]:
    """Run a command with a deadline; return the lines it printed. SystemExit if it fails."""
    deadline = time.monotonic() + LAUNCH_TIMEOUT_S
    outcome = launch.run(argv, launch.environment(RunConfig()), log, lambda: deadline)
    if outcome.returncode != 0:
        raise SystemExit(f"{' '.join(argv[:6])} failed:\n{outcome.output}")
    return log.read_text(errors="replace").splitlines()


def show(samples: dict[str, list[float]], console: Console) -> None:
    """Print each system's steps/s, and psring's over it on the same transport."""
    table = Table("system", "n", "steps/s", "compared with", "ratio")
    for name, step_s in samples.items():
        rate = median_interval(1 / s for s in step_s)
        ours = "psring, colocated" if name == "DDP" else "psring, TCP" if name.endswith("TCP") else "psring"
        compared = not name.startswith("psring") and ours in samples
        cells = (ours, text(*unpaired(step_s, samples[ours]).interval)) if compared else ("", "")
        table.add_row(name, str(len(step_s)), text(*rate), *cells)
    console.print(table)


def text(value: float, low: float, high: float) -> str:
    """Format a value and its interval."""
    return f"{value:.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    main()
