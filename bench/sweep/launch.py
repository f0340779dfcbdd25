"""Launch the ranks of a RunConfig: the launcher's command, and a process tree with a deadline."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench import files, hosts, private
from bench.config import BadInput, RunConfig
from bench.environment import cores
from bench.mpi import find_launcher, is_open_mpi, without_launcher
from bench.nodes import nap
from bench.nodes.layout import INTERFACE, Cluster, hostfile
from bench.processes import FORKED_PSRING, PSRING, terminate_with_parent
from bench.records import PlannedRun
from bench.sweep import template
from strategies.environment import mpi_environment

THREADS_OF_RANK = 2  # one that computes, one that communicates
GRACE_S = 5.0
POLL_S = 0.1
TAIL_BYTES = 1 << 20


def run_flags(config: RunConfig) -> list[str]:
    """Return the flags of `psring run` that rebuild this config: every field that is not its default."""
    flags: list[str] = []
    for name, field in RunConfig.model_fields.items():
        value = getattr(config, name)
        if name in ("num_workers", "launcher") or value == field.default:
            continue
        words = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{words}" if value else f"--no-{words}")
        else:
            flags += [f"--{words}", "none" if value is None else str(value)]
    return flags


def command(config: RunConfig, arguments: Sequence[str], nodes: Cluster | None = None) -> list[str]:
    """Return the argument list that runs `psring ARGUMENTS` on all ranks of a config, on these nodes if given.

    The launcher gets an emulated cluster as a host file and an interface, like a real one.
    """
    psring = FORKED_PSRING if _on_this_machine(config, nodes) else PSRING
    prefix: list[str] = []
    if nodes is not None:
        if config.launcher == "mpirun" and not is_open_mpi(find_launcher("mpirun")):
            raise BadInput(
                "cluster: mpirun on emulated nodes must be Open MPI's, and this one is not; see psring doctor"
            )
        prefix = [*psring, "cluster", "exec", "--name", nodes.name, nodes.nodes[0], "--"]
        hosts = {"link": None, "hostfile": str(hostfile(nodes.name)), "network_interface": INTERFACE}
        config = config.model_copy(update=hosts)
    if config.world_size > 1:
        prefix += launcher_prefix(config, on_this_machine=nodes is not None)
    return [*prefix, *psring, *arguments]


def with_own_hostfile(config: RunConfig, path: Path) -> RunConfig:
    """Return a config whose host file, if it has one, is a copy at `path` in its launcher's own form."""
    if config.hostfile is None or config.world_size == 1:
        return config
    mpich = config.launcher == "mpirun" and not is_open_mpi(find_launcher("mpirun"))
    files.write_whole(path, hosts.make_hostfile(config, mpich=mpich))
    return config.model_copy(update={"hostfile": str(path)})


def environment(config: RunConfig, nodes: Cluster | None = None) -> dict[str, str]:
    """Return what a launcher and its ranks have in their environment; ranks on this machine find a template there."""
    own = {**without_launcher(os.environ), **mpi_environment(os.environ), "PYTHONUNBUFFERED": "1"}
    on_this_machine = _on_this_machine(config, nodes)
    # Linux 6.18 sets a process that yields behind all others: one that has polled for long does not run for seconds.
    # With two busy threads a core it may be either thread, so that launches of one cell would differ by a tenth.
    if nodes or (on_this_machine and THREADS_OF_RANK * config.world_size > cores()):
        own |= nap.environment(own)
    # A launcher that is killed leaves its files where they are removed.
    if not on_this_machine:
        return own | private.session_settings(own)  # other hosts do not have this folder
    own["TMPDIR"] = str(private.temporary_folder())
    return own | template.environment(own)


def _on_this_machine(config: RunConfig, nodes: Cluster | None) -> bool:
    return nodes is not None or (config.hostfile is None and config.launcher != "srun")


def launcher_prefix(config: RunConfig, *, on_this_machine: bool = False) -> list[str]:
    """Return the launcher and its flags: the same placement and transport for every strategy.

    `on_this_machine` says that all hosts of a host file are this machine's emulated nodes.
    """
    program = find_launcher(config.launcher)
    open_mpi = config.launcher == "mpirun" and is_open_mpi(program)
    local = on_this_machine or config.hostfile is None
    return [program, *launcher_flags(config, open_mpi=open_mpi, on_this_machine=local)]


def launcher_flags(config: RunConfig, *, open_mpi: bool, on_this_machine: bool = False) -> list[str]:
    """Return the launcher's flags; `open_mpi` says whether its mpirun is Open MPI's."""
    ranks = str(config.world_size)
    if config.launcher == "horovodrun":
        hosts = ["--hostfile", config.hostfile] if config.hostfile else ["-H", f"localhost:{ranks}"]
        interface = ["--network-interfaces", config.network_interface] if config.network_interface else []
        return ["--gloo", "-np", ranks, *hosts, *interface]
    if config.launcher == "srun":
        return _srun_flags(config)
    flags = ["-n", ranks]
    flags += ["--hostfile", config.hostfile] if config.hostfile else []
    if not open_mpi:  # MPICH's
        if config.network_interface:
            raise BadInput("network_interface: psring sets it for Open MPI only; for MPICH export FI_TCP_IFACE instead")
        return flags
    # The flags that horovodrun gives mpirun, so that every strategy has equal binding and transport.
    flags += ["--oversubscribe", "--bind-to", "none", "--map-by", "slot"]
    # Fabrics that one machine does not need: looking for them takes libfabric (ofi) a second in each launch.
    flags += ["--mca", "pml", "ob1", "--mca", "btl", "^openib,ofi,uct" if on_this_machine else "^openib"]
    if config.network_interface:
        flags += ["--mca", "btl_tcp_if_include", config.network_interface]
    if config.network_interface not in (None, "lo"):  # on one host its daemons need no network
        flags += ["--mca", "oob_tcp_if_include", config.network_interface]
    return flags


def _srun_flags(config: RunConfig) -> list[str]:
    """Return srun's flags, then `env` with the settings that Open MPI reads where mpirun would pass them."""
    flags = ["--ntasks", str(config.world_size), "--mpi=pmix", "--kill-on-bad-exit=1"]
    flags += ["--overcommit", "--overlap", "--cpu-bind=none"]
    transport = ["OMPI_MCA_pml=ob1", "OMPI_MCA_btl=^openib"]
    transport += [f"OMPI_MCA_btl_tcp_if_include={config.network_interface}"] if config.network_interface else []
    return [*flags, "env", *transport]


@dataclass(frozen=True)
class Outcome:
    """How a process tree ended."""

    returncode: int
    timed_out: bool
    output: str
    oom_kills: int = 0  # by this machine's kernel, while it ran


# Starts the ranks of one launch and waits for their end: (runs, scratch folder with the file `plan` and the folder
# `result`, poll) -> outcome. It calls `poll` several times a second; that returns the deadline, time.monotonic().
Launch = Callable[[Sequence[PlannedRun], Path, Callable[[], float]], Outcome]


def run(argv: Sequence[str], environ: Mapping[str, str], log: Path, deadline: Callable[[], float]) -> Outcome:
    """Run a process tree to its end or its deadline; nothing of it is left when this returns or raises.

    `deadline` is called several times a second; it returns a time.monotonic().
    """
    kills_before = _oom_kills()
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env=environ, start_new_session=True, preexec_fn=terminate_with_parent,
        )  # fmt: skip
        try:
            while process.poll() is None and time.monotonic() < deadline():
                time.sleep(POLL_S)
            timed_out = process.poll() is None
        finally:
            end_tree(process)
    tail = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
    return Outcome(process.returncode, timed_out, tail, _oom_kills() - kills_before)


def _oom_kills() -> int:
    """Processes that this kernel has killed for memory since it started."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Terminate a launcher, which ends its ranks; then kill what is left of its process tree."""
    if process.poll() is not None:
        return
    tree = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for rank in tree:
        try:
            rank.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(tree, timeout=GRACE_S)
