"""The launcher, and the real or emulated network between ranks."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from strategies.environment import DEFAULT_SOCKET_BYTES
from strategies.options import Knobs, OrNone

if TYPE_CHECKING:
    from bench.config.run import RunConfig

# Environment variable: the name of the emulated cluster on whose nodes a process runs.
CLUSTER_VARIABLE = "PSRING_CLUSTER"
CongestionControl = Literal["reno", "cubic"]
MAX_NODES = 250  # of an emulated cluster
DEFAULT_CONGESTION_CONTROL: CongestionControl = "reno"


def _check_interfaces(text: str | None) -> str | None:
    """Return the text if it names interfaces or networks, separated by commas: launchers hand it to a shell."""
    for word in text.split(",") if text else []:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@:-]{0,14}", word) and not _is_network(word):
            raise ValueError(
                f"network_interface: {word!r} is neither an interface nor a network; write eth0 or 10.0.0.0/24"
            )
    return text


def _is_network(word: str) -> bool:
    try:
        ipaddress.ip_network(word, strict=False)
    except ValueError:
        return False
    return re.fullmatch(r"[0-9a-fA-F.:]+/[0-9]+", word) is not None


class Network(Knobs):
    """Launcher, hosts, sockets and links."""

    launcher: Literal["none", "mpirun", "horovodrun", "srun"] = "mpirun"
    """What starts the ranks of a sweep; `psring run` detects it. One rank alone needs none."""
    hostfile: str | None = None
    """Host file, 'host slots=4' or 'host:4' per line, for any launcher; none: this machine only."""
    network_interface: Annotated[str | None, AfterValidator(_check_interfaces)] = None
    """Interface (eth0) or network (10.0.0.0/24, not for horovodrun) that carries the traffic; none: the launcher's
    choice."""
    link: str | None = None
    """Rate of each emulated node's link, both directions: 200mbit, or per node n0=1gbit,server=500mbit,*=50mbit;
    none: no emulated cluster. One rank per node; under `psring cluster exec` it is detected."""
    delay: str | None = None
    """One-way delay of each emulated link (2ms; needs the kernel's netem); none: the machine's own."""
    congestion_control: CongestionControl = DEFAULT_CONGESTION_CONTROL
    """Congestion control of the emulated nodes' TCP."""
    slowdown: float = Field(1.0, ge=1, le=1e3)
    """Emulated nodes: what `psring sweep` has divided link by, and multiplied delay and emulated compute by, because
    this machine is too slow for the links that were asked for; M/(B·T) stays the same."""
    patience_s: float = Field(20.0, ge=0, le=1e5)
    """Emulated nodes: how long a run waits at most for other processes to stop using this machine's cores and links,
    seconds."""
    socket_bytes: Annotated[int | None, OrNone] = Field(DEFAULT_SOCKET_BYTES, ge=4096, le=1 << 30)
    """Kernel buffer at each end of Open MPI's TCP connections, each way, bytes; none: sized by the kernel, which is
    faster beyond 10 Gbit/s but fills the queue of a slow link."""
    eager_limit_bytes: Annotated[int | None, OrNone] = Field(None, ge=1024, le=1 << 30)
    """Largest message that Open MPI sends eagerly over TCP (btl_tcp_eager_limit), at the price of one more copy at the
    receiver; none: Open MPI's own, 64 KiB."""


def check(config: RunConfig) -> Iterator[str]:
    """Yield what the launcher cannot start, and what contradicts an emulated network."""
    if config.launcher == "none" and config.world_size > 1:
        yield f"launcher: {config.world_size} ranks need one; use launcher: mpirun"
    if config.link is None and config.given(("delay", "congestion_control")):
        yield "delay and congestion_control belong to emulated nodes; give a link (link: 200mbit)"
    if config.link and (config.hostfile or config.network_interface):
        yield "link: emulated nodes have their own hosts; leave hostfile and network_interface out"
    # Without communication any launcher is accepted: old folders have such (failed) runs.
    if config.world_size > 1 and config.kind.communicates and config.launcher not in config.kind.launchers:
        yield f"launcher: {config.launcher} cannot start {config.strategy}; use launcher: {config.kind.launchers[0]}"
    if config.launcher == "horovodrun" and "/" in (config.network_interface or ""):
        yield "network_interface: horovodrun takes an interface and no network; write its name (eth0)"
    if config.launcher == "srun" and (config.hostfile or config.link):
        yield "launcher: srun starts ranks on the job's own nodes; leave hostfile and link out"
