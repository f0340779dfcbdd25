"""Which rank this process is, and MPI's settings of one run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.config import BadInput, RunConfig, make_config
from strategies.environment import DEFAULT_SOCKET_BYTES

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
class RankInfo:
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
    def detect(environ: Mapping[str, str]) -> RankInfo:
        """Read the launcher's variables; a process without them is alone."""
        for launcher, rank, size, local_rank in _LAUNCHER_VARIABLES:
            if size in environ:
                return RankInfo(launcher, int(environ[rank]), int(environ[size]), int(environ.get(local_rank, 0)))
        return RankInfo("none", 0, 1, 0)


def is_open_mpi(mpirun: str) -> bool:
    """Whether this mpirun is Open MPI's, which psring knows best: flags, emulated nodes, sockets."""
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return "Open MPI" in version.stdout


def complete_config(
    given: Mapping[str, object], rank_info: RankInfo, links: Mapping[str, object] | None = None
) -> RunConfig:
    """Return a command line's config with what only the launcher, and the emulated node it runs on, know.

    BadInput if they do not fit.
    """
    if links is None and "link" in given:
        raise BadInput("link: this is no emulated node; psring cluster up, then psring cluster exec n0 -- mpirun ...")
    given_servers = str(given.get("num_servers", 0))
    num_servers = int(given_servers) if given_servers.isdigit() else 0  # RunConfig says what is wrong with others
    num_workers = rank_info.world_size - num_servers
    values = {"launcher": rank_info.launcher, **given, **(links or {}), "num_workers": max(num_workers, 1)}
    if num_workers < 1:
        make_config({**values, "launcher": "mpirun"}, "run")  # a wrong value is named before ranks that are missing
        raise BadInput(
            f"num_servers: {num_servers} of {rank_info.world_size} ranks leave no worker; "
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


def find_launcher(name: str) -> str:
    """Return the launcher's path: beside this Python first, then on PATH; BadInput if there is none."""
    beside = Path(sys.executable).parent / name
    program = str(beside) if beside.exists() else shutil.which(name)
    if program is None:
        raise BadInput(f"launcher: {name} is not on PATH; run scripts/setup.sh, or load your MPI's module")
    return program
