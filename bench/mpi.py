"""The rank of this process, and Open MPI's settings of one run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.config import BadInput, RunConfig, make_config
from bench.config.topology import default_num_servers
from strategies.catalogue import CATALOGUE
from strategies.environment import DEFAULT_SOCKET_BYTES

FRAGMENT_BYTES = 1 << 17  # Open MPI's default largest fragment over TCP; the eager limit may not be larger than it
JOIN_S = 60.0  # within which all ranks of a launch must have joined
RENDEZVOUS_BYTES = 1 << 10  # payload in a rendezvous request, which the receiver copies once more

# (launcher, rank, size, rank on this host): the first set whose size is defined applies. Slurm defines SLURM_PROCID
# also in a batch script, but SLURM_STEP_NUM_TASKS only in a step that srun started.
_LAUNCHER_VARIABLES = [
    ("mpirun", *(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK"))),
    ("horovodrun", *(f"HOROVOD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK"))),
    ("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
]
# What horovodrun and torchrun tell their ranks beside that.
_TOLD_PREFIXES = ("HOROVOD_GLOO_", "HOROVOD_CROSS_", "HOROVOD_LOCAL_", "HOROVOD_HOSTNAME", "TORCHELASTIC_", "MASTER_")
_TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")


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
        """Read the launcher's variables; without both rank and size the process is the only rank.

        BadInput if they are no rank and size, or those of torchrun, which starts neither MPI nor Horovod.
        """
        for launcher, rank, size, local_rank in _LAUNCHER_VARIABLES:
            if size in environ and rank in environ:
                found = RankInfo(launcher, *(_number(environ, name) for name in (rank, size, local_rank)))
                if not found.rank < found.world_size:
                    raise BadInput(
                        f"{rank}={environ[rank]} and {size}={environ[size]} are no rank and size; unset both"
                    )
                return found
        if "TORCHELASTIC_RUN_ID" in environ and environ.get("WORLD_SIZE") != "1":
            raise BadInput(
                "torchrun: psring's ranks are started by mpirun, horovodrun or srun: mpirun -n 2 psring run ..."
            )
        return ALONE

    @staticmethod
    def of_strategy(strategy: object, environ: Mapping[str, str]) -> RankInfo:
        """Do the same, but a strategy of one process is alone in a shell of a Slurm step, too."""
        found = RankInfo.detect(environ)
        in_shell = found.launcher == "srun" and found.rank == 0
        return ALONE if in_shell and strategy in SINGLE_PROCESS else found

    def check_world(self, rank: int, size: int) -> None:
        """Raise BadInput unless this process is the rank that its launcher's variables say it is."""
        if (rank, size) != (self.rank, self.world_size):
            raise BadInput(
                f"the variables of {self.launcher} say rank {self.rank} of {self.world_size}, the library that joins "
                f"the ranks says rank {rank} of {size}: unset variables that another launch has left, or use the "
                f"launcher of that library (psring doctor names it)"
            )


ALONE = RankInfo("none", 0, 1, 0)
SINGLE_PROCESS = [name for name, entry in CATALOGUE.items() if entry.single_process]


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "0")
    if not (text.isascii() and text.isdigit()):
        raise BadInput(f"{name}={text!r} is no number of a rank; unset it, or start psring with a launcher")
    return int(text)


def without_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what a launcher tells its ranks, for a process that starts ranks of its own."""
    told = {*_TOLD, *(name for _, *names in _LAUNCHER_VARIABLES for name in names)}
    return {name: value for name, value in environ.items() if name not in told and not name.startswith(_TOLD_PREFIXES)}


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
    num_servers = (
        int(given_servers) if re.fullmatch(r"[0-9]{1,9}", given_servers) else 0
    )  # RunConfig reports other values
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
