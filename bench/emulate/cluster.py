"""Nodes, links and a switch inside one machine: a network namespace per node, real TCP over links of known speed.

A node is a named network namespace; the switch is a bridge in a namespace of its own; a link is a veth pair
with a token bucket (tbf) at both ends, so that each direction has the link's rate. Whatever happens to the
process that brought a cluster up, its names say what is left of it: `down` removes it all.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout
from pyroute2 import NetNS, netns

from bench.config import BadInput

STATE = Path("/run/psring")
NAMESPACES = Path("/run/netns")
INTERFACE = "eth0"
NETWORK = "10.77.0"
MOST_NODES = 250
# A bucket of 128 kB is the smallest that lets TCP reach the rate; queues of 100 ms drop nothing.
BURST_BYTES = 128 * 1024
QUEUE = "100ms"
UNITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
END_S = 5.0


@dataclass(frozen=True)
class Cluster:
    """A cluster's name and the rate of each node's link, bits per second in each direction."""

    name: str
    rates: tuple[int, ...]

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


def parse_rate(text: str) -> int:
    """'200mbit' -> 200000000 bits per second; BadInput for anything else, and for zero."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", text.strip())
    rate = int(float(found[1]) * UNITS[found[2]]) if found else 0
    if rate < 1000:
        raise BadInput(f"--link: {text!r} is no rate above zero; write 200mbit, 1gbit or 500kbit")
    return rate


def parse_links(text: str, num_nodes: int) -> tuple[int, ...]:
    """'200mbit', or 'n0=1gbit,*=50mbit' -> the rate of each node's link."""
    if "=" not in text:
        return (parse_rate(text),) * num_nodes
    given = dict(part.partition("=")[::2] for part in text.split(","))
    nodes = [f"n{i}" for i in range(num_nodes)]
    unknown = [node for node in given if node not in (*nodes, "*")]
    if unknown:
        raise BadInput(f"--link: there is no node {unknown[0]!r}; nodes are {nodes[0]} to {nodes[-1]}, * is all others")
    missing = [node for node in nodes if node not in given and "*" not in given]
    if missing:
        raise BadInput(f"--link: no rate for {missing[0]}; add *=RATE for all others")
    return tuple(parse_rate(given.get(node, given.get("*", ""))) for node in nodes)


def make(name: str, num_nodes: int, link: str) -> Cluster:
    """Describe a cluster; BadInput if there can be none like it."""
    if not re.fullmatch(r"[a-z0-9]{1,20}", name):
        raise BadInput(f"--name: {name!r} is not 1 to 20 small letters and digits")
    if not 1 <= num_nodes <= MOST_NODES:
        raise BadInput(f"--num-nodes: {num_nodes} is not from 1 to {MOST_NODES}")
    return Cluster(name, parse_links(link, num_nodes))


def up(cluster: Cluster) -> None:
    """Bring a cluster up; BadInput if it is up already or this user may not."""
    if not _may():
        raise BadInput("cluster: making network namespaces needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN); use sudo")
    with _locked(cluster.name):
        if _state_file(cluster.name).exists():
            raise BadInput(f"cluster: {cluster.name!r} is up already; psring cluster down --name {cluster.name}")
        _remove(cluster.name)  # what a killed `up` has left
        try:
            _build(cluster)
        except BaseException:
            _remove(cluster.name)
            raise
        hosts_file(cluster.name).write_text(cluster.hosts())
        _state_file(cluster.name).write_text(json.dumps(asdict(cluster)))


def _build(cluster: Cluster) -> None:
    switch = cluster.namespace("sw")
    netns.create(switch)
    with NetNS(switch) as ports:
        ports.link("add", ifname="br0", kind="bridge")
        bridge = _index(ports, "br0")
        ports.link("set", index=bridge, state="up")
        for node, rate in zip(cluster.nodes, cluster.rates, strict=True):
            netns.create(cluster.namespace(node))
            with NetNS(cluster.namespace(node)) as inside:
                port = f"p-{node}"
                peer = {"ifname": port, "net_ns_fd": switch}
                inside.link("add", ifname=INTERFACE, kind="veth", peer=peer)
                card = _index(inside, INTERFACE)
                inside.addr("add", index=card, address=cluster.address(node), prefixlen=24)
                for index in (_index(inside, "lo"), card):
                    inside.link("set", index=index, state="up")
                _shape(inside, card, rate)
            ports.link("set", index=_index(ports, port), master=bridge, state="up")
            _shape(ports, _index(ports, port), rate)


def _index(namespace: Any, ifname: str) -> int:
    (index,) = namespace.link_lookup(ifname=ifname)
    return int(index)


def _shape(namespace: Any, index: int, rate: int) -> None:
    """Hold what leaves an interface to a rate (tc-tbf)."""
    namespace.tc("add", "tbf", index=index, handle="1:", rate=f"{rate // 1000}kbit", burst=BURST_BYTES, latency=QUEUE)


def down(name: str) -> None:
    """End every process in a cluster and remove its namespaces; nothing to do if there is none."""
    if not _may():
        raise BadInput("cluster: removing network namespaces needs root; use sudo")
    with _locked(name):
        _remove(name)


def _remove(name: str) -> None:
    left = list(NAMESPACES.glob(f"psring-{name}-*")) if NAMESPACES.exists() else []
    end_processes({path.stat().st_ino for path in left})
    for path in left:
        netns.remove(path.name)
    for file in (_state_file(name), hosts_file(name)):
        file.unlink(missing_ok=True)


def end_processes(namespaces: set[int]) -> None:
    """Kill every process whose network namespace is one of these, until there is none."""
    deadline = time.monotonic() + END_S
    while inside := processes(namespaces):
        if time.monotonic() > deadline:
            raise BadInput(f"cluster: process {inside[0]} does not end; end it, then psring cluster down")
        for pid in inside:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def processes(namespaces: set[int]) -> list[int]:
    """Processes, zombies left out, in any of these network namespaces (inode numbers)."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        with contextlib.suppress(OSError):
            inode = Path(f"/proc/{process.pid}/ns/net").stat().st_ino
            if inode in namespaces and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def find(name: str) -> Cluster:
    """Return a cluster that is up; BadInput if it is not."""
    try:
        state = json.loads(_state_file(name).read_text())
    except FileNotFoundError:
        raise BadInput(f"cluster: {name!r} is not up; psring cluster up --name {name}") from None
    return Cluster(state["name"], tuple(state["rates"]))


def status() -> list[Cluster]:
    """All clusters that are up on this machine."""
    return [find(path.stem) for path in sorted(STATE.glob("*.json"))]


def counters(cluster: Cluster, node: str) -> tuple[int, int]:
    """Return the bytes (sent, received) that the kernel has counted on a node's link, headers included."""
    with NetNS(cluster.namespace(node)) as inside:
        (link,) = inside.get_links(_index(inside, INTERFACE))
        stats = link.get_attr("IFLA_STATS64")
    return int(stats["tx_bytes"]), int(stats["rx_bytes"])


def _state_file(name: str) -> Path:
    return STATE / f"{name}.json"


def hosts_file(name: str) -> Path:
    """What every node of a cluster has as /etc/hosts."""
    return STATE / f"{name}.hosts"


def _may() -> bool:
    return os.geteuid() == 0


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    STATE.mkdir(exist_ok=True)
    try:
        with FileLock(STATE / f"{name}.lock", timeout=END_S):
            yield
    except Timeout:
        raise BadInput(f"cluster: {name!r} is being brought up or down by another command; wait for it") from None
