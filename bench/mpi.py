"""The rank of this process, and Open MPI's settings of one run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.config import BadInput, RunConfig, make_config
from bench.config.topology import default_num_servers
from strategies.environment import DEFAULT_SOCKET_BYTES

FRAGMENT_BYTES = 1 << 17  # Open MPI's default largest fragment over TCP; the eager limit may not be larger than it
RENDEZVOUS_BYTES = 1 << 10  # payload in a rendezvous request, which the receiver copies once more

# (launcher, rank, size, rank on this host): the first set whose size is defined applies. Slurm defines SLURM_PROCID
# also in a batch script, but SLURM_STEP_NUM_TASKS only in a step that srun started.
_LAUNCHER_VARIABLES = [
    ("mpirun", *(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK"))),
    ("horovodrun", *(f"HOROVOD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK"))),
    ("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
]


@dataclass(frozen=True)
class RankInfo:
    """The rank of this process, from its launcher's variables, known before any library is imported."""

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
        """Read the launcher's variables; without them the process is the only rank."""
        for launcher, rank, size, local_rank in _LAUNCHER_VARIABLES:
            if size in environ:
                return RankInfo(launcher, int(environ[rank]), int(environ[size]), int(environ.get(local_rank, 0)))
        return RankInfo("none", 0, 1, 0)


def is_open_mpi(mpirun: str) -> bool:
    """Whether this mpirun is Open MPI's, whose flags, sockets and use on emulated nodes psring supports."""
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return "Open MPI" in version.stdout


def complete_config(
    given: Mapping[str, object], rank_info: RankInfo, links: Mapping[str, object] | None = None
) -> RunConfig:
    """Return a command line's config, completed by the launcher's world and the links of the emulated node.

    BadInput if they do not fit together.
    """
    if links is None and "link" in given:
        raise BadInput(
            "link: this is not an emulated node; psring cluster up, then psring cluster exec n0 -- mpirun ..."
        )
    given_servers = str(given.get("num_servers", default_num_servers(given)))
    num_servers = int(given_servers) if given_servers.isdigit() else 0  # RunConfig reports other values
    num_workers = rank_info.world_size - num_servers
    values = {"launcher": rank_info.launcher, **given, **(links or {}), "num_workers": max(num_workers, 1)}
    if num_workers < 1:
        make_config({**values, "launcher": "mpirun"}, "run")  # a wrong value is reported before missing ranks
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
    """Return the environment variables that set Open MPI's TCP socket buffers and eager limit.

    A rendezvous request carries almost no payload: the message is then received directly into its buffer.
    """
    settings = {}
    if (
        config.socket_bytes != DEFAULT_SOCKET_BYTES
    ):  # else mpi_environment's default, which the user's variables override
        settings = dict.fromkeys(("btl_tcp_sndbuf", "btl_tcp_rcvbuf"), config.socket_bytes or 0)
    if config.eager_limit_bytes is not None:
        settings |= {
            "btl_tcp_eager_limit": config.eager_limit_bytes,
            "btl_tcp_max_send_size": max(config.eager_limit_bytes, FRAGMENT_BYTES),
            "btl_tcp_rndv_eager_limit": RENDEZVOUS_BYTES,
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
