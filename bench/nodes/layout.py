"""What an emulated cluster is: its nodes, their addresses and the rates of their links. Plain values."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from bench.config import BadInput
from bench.links import parse_delay, parse_links

STATE = Path("/run/psring")
NAMESPACES = Path("/run/netns")
NETWORK = "10.77.0"
INTERFACE = "eth0"
MOST_NODES = 250
# A bucket of 128 kB is the smallest that lets TCP reach the rate.
BURST_BYTES = 128 * 1024
# Of a link's rate, what TCP can carry as payload: 1448 bytes in an Ethernet frame of 1514.
PAYLOAD_SHARE = 1448 / 1514


@dataclass(frozen=True)
class Cluster:
    """A cluster's name, its links (rates in bits per second in each direction), and their text as given."""

    name: str
    rates: tuple[int, ...]
    link: str
    num_servers: int = 0
    delay: str | None = None
    congestion_control: str = "reno"

    @property
    def nodes(self) -> list[str]:
        """Host names, n0 first."""
        return [f"n{i}" for i in range(len(self.rates))]

    def address(self, node: str) -> str:
        """A node's IPv4 address."""
        return f"{NETWORK}.{self.nodes.index(node) + 1}"

    def namespace(self, node: str) -> str:
        """The network namespace of a node, or of the switch (sw)."""
        return f"psring-{self.name}-{node}"

    def hosts(self) -> str:
        """What /etc/hosts says on every node."""
        lines = [f"{self.address(node)} {node}" for node in self.nodes]
        return "\n".join(["127.0.0.1 localhost", *lines, ""])

    def hostfile(self) -> str:
        """The launcher's host file: one rank per node."""
        return "".join(f"{node} slots=1\n" for node in self.nodes)

    def goodput(self, node: str) -> float:
        """Payload bytes per second that TCP can carry on a node's link, each direction."""
        return self.rates[self.nodes.index(node)] / 8 * PAYLOAD_SHARE

    def delay_s(self) -> float:
        """One-way delay of each link, seconds."""
        return parse_delay(self.delay) if self.delay else 0.0


def make(
    name: str, num_nodes: int, link: str, num_servers: int = 0,
    delay: str | None = None, congestion_control: str = "reno",
) -> Cluster:  # fmt: skip
    """Describe a cluster whose last `num_servers` nodes are servers'; BadInput if there can be none like it."""
    if not re.fullmatch(r"[a-z0-9]{1,20}", name):
        raise BadInput(f"--name: {name!r} is not 1 to 20 small letters and digits")
    if not 1 <= num_nodes <= MOST_NODES:
        raise BadInput(f"--num-nodes: {num_nodes} is not from 1 to {MOST_NODES}")
    if congestion_control not in ("reno", "cubic"):
        raise BadInput(f"--congestion-control: {congestion_control!r} is neither reno nor cubic")
    rates = parse_links(link, num_nodes, num_servers)
    made = Cluster(name, rates, link, num_servers, delay, congestion_control)
    made.delay_s()  # or BadInput
    return made


def find(name: str) -> Cluster:
    """Return a cluster that is up; BadInput if it is not."""
    try:
        state = json.loads(state_file(name).read_text())
        return Cluster(**{**state, "rates": tuple(state["rates"])})
    except FileNotFoundError:
        raise BadInput(f"cluster: {name!r} is not up; psring cluster up --name {name}") from None
    except TypeError:
        raise BadInput(f"cluster: {name!r} is another version's; psring cluster down --name {name}") from None


def state_file(name: str) -> Path:
    """Where a cluster that is up is described."""
    return STATE / f"{name}.json"


def hosts_file(name: str) -> Path:
    """What every node of a cluster has as /etc/hosts."""
    return STATE / f"{name}.hosts"


def host_file(name: str) -> Path:
    """The host file that mpirun and horovodrun get: one rank per node."""
    return STATE / f"{name}.nodes"
