"""From a RunConfig to a tree of processes with a deadline, and from a process back to its rank."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.config import DEFAULT_SOCKET_BYTES, BadInput, RunConfig, make_config
from bench.emulate.layout import INTERFACE, Cluster, host_file

GRACE_S = 5.0
POLL_S = 0.1
TAIL_BYTES = 1 << 20
FRAGMENT_BYTES = 1 << 17  # Open MPI's own largest fragment over TCP; none that is sent unasked may be larger
QUESTION_BYTES = 1 << 10  # what may travel along when a sender asks, which the receiver copies once more

# (launcher, rank, size, rank on this host): the first set whose size is there decides. In a batch script Slurm sets
# SLURM_PROCID too, but only in a step that srun started does it say how many ranks there are.
_LAUNCHER_VARIABLES = [
    ("mpirun", *(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK"))),
    ("horovodrun", *(f"HOROVOD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK"))),
    ("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
]


@dataclass(frozen=True)
class Placement:
    """Which rank this process is, as its launcher says before any library is imported."""

    launcher: str
    rank: int
    world_size: int
    local_rank: int

    @property
    def starts_mpi(self) -> bool:
        """Whether the launcher made this process a rank of an MPI world."""
        return self.launcher in ("mpirun", "srun")

    @staticmethod
    def detect(environ: Mapping[str, str]) -> Placement:
        """Read the launcher's variables; a process without them is alone."""
        for launcher, rank, size, local_rank in _LAUNCHER_VARIABLES:
            if size in environ:
                return Placement(launcher, int(environ[rank]), int(environ[size]), int(environ.get(local_rank, 0)))
        return Placement("none", 0, 1, 0)


def mpi_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what must be set before MPI_Init, in a launcher and in a rank, for all strategies alike.

    Open MPI's own choice for a large allreduce is no ring (Rabenseifner's algorithm up to 5.0), so the ring
    is forced; ranks that wait yield their core. Sockets that grow without limit fill the queues of the network: then
    acknowledgements wait behind data, and traffic in both directions halves.
    """
    settings = {
        "OMPI_MCA_coll_tuned_use_dynamic_rules": "1",
        "OMPI_MCA_coll_tuned_allreduce_algorithm": "4",  # ring
        "OMPI_MCA_coll_han_priority": "0",  # Open MPI 5 would put its hierarchical collectives first
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "OMPI_MCA_btl_tcp_sndbuf": str(DEFAULT_SOCKET_BYTES),
        "OMPI_MCA_btl_tcp_rcvbuf": str(DEFAULT_SOCKET_BYTES),
    }
    if list(Path(sys.prefix, "lib").glob("libmpi.so*")):
        settings["OPAL_PREFIX"] = sys.prefix  # an MPI inside the .venv does not know where that is
    if os.geteuid() == 0:
        settings["OMPI_ALLOW_RUN_AS_ROOT"] = settings["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    return {name: environ.get(name, value) for name, value in settings.items()}


def complete_config(
    given: Mapping[str, object], placement: Placement, links: Mapping[str, object] | None = None
) -> RunConfig:
    """Return a command line's config with what only the launcher, and the emulated node it runs on, know.

    BadInput if they do not fit.
    """
    if links is None and "link" in given:
        raise BadInput("link: this is no emulated node; psring cluster up, then psring cluster exec n0 -- mpirun ...")
    given_servers = str(given.get("num_servers", 0))
    num_servers = int(given_servers) if given_servers.isdigit() else 0  # RunConfig says what is wrong with others
    num_workers = placement.world_size - num_servers
    values = {"launcher": placement.launcher, **given, **(links or {}), "num_workers": max(num_workers, 1)}
    if num_workers < 1:
        make_config({**values, "launcher": "mpirun"}, "run")  # a wrong value is named before ranks that are missing
        raise BadInput(
            f"num_servers: {num_servers} of {placement.world_size} ranks leave no worker; "
            f"start at least {num_servers + 1}: mpirun -n {num_servers + 1} psring run ..."
        )
    config = make_config(values, "run")
    reason = config.unsupported()
    if reason:
        raise BadInput(f"run: {reason}")
    return config


def tcp_settings(config: RunConfig) -> dict[str, str]:
    """What Open MPI must find in a rank's environment for the wanted sockets, and messages sent over them unasked.

    Of what is asked for nothing travels with the question: the whole is then written where its receiver wants it.
    """
    settings = {}
    if config.socket_bytes != DEFAULT_SOCKET_BYTES:  # else mpi_environment's, which the user's own may replace
        settings = dict.fromkeys(("btl_tcp_sndbuf", "btl_tcp_rcvbuf"), config.socket_bytes or 0)
    if config.eager_limit_bytes is not None:
        settings |= {
            "btl_tcp_eager_limit": config.eager_limit_bytes,
            "btl_tcp_max_send_size": max(config.eager_limit_bytes, FRAGMENT_BYTES),
            "btl_tcp_rndv_eager_limit": QUESTION_BYTES,
            "btl_tcp_rdma_pipeline_send_length": 0,
            "btl_tcp_min_rdma_pipeline_size": 0,
        }
    return {f"OMPI_MCA_{name}": str(value) for name, value in settings.items()}


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

    To the launcher an emulated cluster is a host file and an interface, as a real one is.
    """
    psring = [sys.executable, "-m", "bench.cli"]
    prefix: list[str] = []
    if nodes is not None:
        prefix = [*psring, "cluster", "exec", "--name", nodes.name, nodes.nodes[0], "--"]
        hosts = {"link": None, "hostfile": str(host_file(nodes.name)), "network_interface": INTERFACE}
        config = config.model_copy(update=hosts)
    if config.world_size > 1:
        prefix += launcher_prefix(config)
    return [*prefix, *psring, *arguments]


def launcher_prefix(config: RunConfig) -> list[str]:
    """Return the launcher and its flags: the same placement and transport for every strategy."""
    program = find_launcher(config.launcher)
    ranks = str(config.world_size)
    if config.launcher == "horovodrun":
        hosts = ["--hostfile", config.hostfile] if config.hostfile else ["-H", f"localhost:{ranks}"]
        interface = ["--network-interfaces", config.network_interface] if config.network_interface else []
        return [program, "--gloo", "-np", ranks, *hosts, *interface]
    if config.launcher == "srun":
        return _srun(program, config)
    flags = ["-n", ranks]
    flags += ["--hostfile", config.hostfile] if config.hostfile else []
    if _is_open_mpi(program):
        # What horovodrun gives mpirun, so that no strategy is bound or routed otherwise than another.
        flags += ["--oversubscribe", "--bind-to", "none", "--map-by", "slot", "--tag-output"]
        flags += ["--mca", "pml", "ob1", "--mca", "btl", "^openib"]
        if config.network_interface:
            flags += ["--mca", "btl_tcp_if_include", config.network_interface]
            flags += ["--mca", "oob_tcp_if_include", config.network_interface]
    return [program, *flags]


def _srun(program: str, config: RunConfig) -> list[str]:
    """Return srun and its flags: what mpirun is given, said to Slurm and, through `env`, to Open MPI."""
    flags = ["--ntasks", str(config.world_size), "--mpi=pmix", "--label", "--kill-on-bad-exit=1"]
    flags += ["--overcommit", "--overlap", "--cpu-bind=none"]
    transport = ["OMPI_MCA_pml=ob1", "OMPI_MCA_btl=^openib"]
    transport += [f"OMPI_MCA_btl_tcp_if_include={config.network_interface}"] if config.network_interface else []
    return [program, *flags, "env", *transport]


def find_launcher(name: str) -> str:
    """Return the launcher's path: beside this Python first, then on PATH; BadInput if there is none."""
    beside = Path(sys.executable).parent / name
    program = str(beside) if beside.exists() else shutil.which(name)
    if program is None:
        raise BadInput(f"launcher: {name} is not on PATH; run scripts/setup.sh, or load your MPI's module")
    return program


def _is_open_mpi(program: str) -> bool:
    version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return "Open MPI" in version.stdout


@dataclass(frozen=True)
class Outcome:
    """How a process tree ended."""

    returncode: int
    timed_out: bool
    output: str
    oom_kills: int = 0  # by this machine's kernel, while it ran


def run(argv: Sequence[str], log: Path, deadline: Callable[[], float]) -> Outcome:
    """Run a process tree to its end or its deadline; nothing of it is left when this returns or raises.

    `deadline` is asked several times a second for the time.monotonic() at which patience ends.
    """
    kills_before = _oom_kills()
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, **mpi_environment(os.environ), "PYTHONUNBUFFERED": "1"},
            start_new_session=True, preexec_fn=_terminate_with_parent,
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
    """Ask a launcher to end its ranks, then end whatever is left of its tree."""
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


_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _terminate_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def die_with_parent() -> None:
    """Have the kernel end this process when its launcher dies: no orphan rank computes on."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
