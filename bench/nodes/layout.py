"""The description of an emulated cluster: its nodes, their addresses and the rates of their links."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from bench.config import BadInput
from bench.config.network import DEFAULT_CONGESTION_CONTROL, MAX_NODES, CongestionControl
from bench.links import parse_delay, parse_links

STATE = Path("/run/psring")
NAMESPACES = Path("/run/netns")
NETWORK = "10.77.0"
INTERFACE = "eth0"
# The smallest token bucket with which TCP reaches the link's rate.
BURST_BYTES = 128 * 1024
# TCP payload over bytes on the link: 1448 bytes of payload in an Ethernet frame of 1514.
PAYLOAD_SHARE = 1448 / 1514


@dataclass(frozen=True)
class Cluster:
    """A cluster: `rates` are its links' bits per second in each direction, node 0 first; `link` their text as given."""

    name: str
    rates: tuple[int, ...]
    link: str
    num_servers: int = 0
    delay: str | None = None
    congestion_control: str = DEFAULT_CONGESTION_CONTROL

    @property
    def nodes(self) -> list[str]:
        """Host names, n0 first."""
        return [f"n{i}" for i in range(len(self.rates))]

    def address(self, node: str) -> str:
        """IPv4 address of a node."""
        return f"{NETWORK}.{self.nodes.index(node) + 1}"

    def namespace(self, node: str) -> str:
        """Name of the network namespace of a node, or of the switch (`sw`)."""
        return f"psring-{self.name}-{node}"

    def etc_hosts(self) -> str:
        """Content of /etc/hosts on every node."""
        lines = [f"{self.address(node)} {node}" for node in self.nodes]
        return "\n".join(["127.0.0.1 localhost", *lines, ""])

    def hostfile(self) -> str:
        """Content of the launcher's host file: one slot per node."""
        return "".join(f"{node} slots=1\n" for node in self.nodes)

    def goodput(self, node: str) -> float:
        """Bytes of TCP payload per second that a node's link can carry in each direction."""
        return self.rates[self.nodes.index(node)] / 8 * PAYLOAD_SHARE

    def delay_s(self) -> float:
        """One-way delay of each link, seconds."""
        return parse_delay(self.delay) if self.delay else 0.0


def make(
    name: str, num_nodes: int, link: str, num_servers: int = 0,
    delay: str | None = None, congestion_control: str = DEFAULT_CONGESTION_CONTROL,
) -> Cluster:  # fmt: skip
    """Return a cluster whose last `num_servers` nodes are those that `server=RATE` means; BadInput for a bad value."""
    check_name(name)
    if not 1 <= num_nodes <= MAX_NODES:
        raise BadInput(f"--num-nodes: {num_nodes} is not from 1 to {MAX_NODES}")
    if not 0 <= num_servers <= num_nodes:
        raise BadInput(f"--num-servers: {num_servers} is not from 0 to {num_nodes}, the number of nodes")
    if congestion_control not in get_args(CongestionControl):
        raise BadInput(f"--congestion-control: {congestion_control!r} is neither reno nor cubic")
    rates = parse_links(link, num_nodes, num_servers)
    made = Cluster(name, rates, link, num_servers, delay, congestion_control)
    made.delay_s()  # raises BadInput if the delay cannot be parsed
    return made


def check_name(name: str) -> None:
    """Raise BadInput unless a cluster may have this name: it becomes a part of file names and of glob patterns."""
    if not re.fullmatch(r"[a-z0-9]{1,20}", name):
        raise BadInput(f"--name: {name!r} is not 1 to 20 small letters and digits")


def find(name: str) -> Cluster:
    """Return a cluster that is up; BadInput if it is not."""
    check_name(name)
    try:
        state = json.loads(state_file(name).read_text(encoding="utf-8"))
        return Cluster(**{**state, "rates": tuple(state["rates"])})
    except FileNotFoundError:
        raise BadInput(f"cluster: {name!r} is not up; psring cluster up --name {name}") from None
    except (TypeError, ValueError, KeyError):  # half written, or by another version
        raise BadInput(
            f"cluster: {name!r} was not brought up completely, or by another version of psring; "
            f"psring cluster down --name {name}"
        ) from None


def state_file(name: str) -> Path:
    """Path of the JSON description of a cluster that is up."""
    return STATE / f"{name}.json"


def etc_hosts_file(name: str) -> Path:
    """Path of the file that every node of a cluster mounts as /etc/hosts."""
    return STATE / f"{name}.hosts"


def hostfile(name: str) -> Path:
    """Path of the host file that mpirun and horovodrun get."""
    return STATE / f"{name}.nodes"
