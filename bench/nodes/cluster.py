"""Bring emulated clusters up and down: a network namespace per node, real TCP over links of a known rate.

A node is a named network namespace; the switch is a bridge in a namespace of its own; a link is a veth pair
with a token bucket (tbf) at both ends, so that each direction has the link's rate. All names begin with the
cluster's: `down` finds and removes everything even if the process that ran `up` was killed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout
from pyroute2 import IPRoute, NetNS, netns
from pyroute2.netlink.exceptions import NetlinkError

from bench.config import BadInput
from bench.nodes import nap
from bench.nodes.layout import (
    BURST_BYTES,
    INTERFACE,
    NAMESPACES,
    STATE,
    Cluster,
    check_name,
    etc_hosts_file,
    find,
    hostfile,
    state_file,
)
from bench.processes import FORKED_PSRING

# Long enough for what all other nodes may send to one node at once (incast): packets queue and none is dropped.
QUEUE_LATENCY = "1000ms"
KILL_TIMEOUT_S = 5.0
LOCK_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 60.0
_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21


def up(cluster: Cluster) -> None:
    """Bring a cluster up; BadInput if it is up already, or this user or kernel cannot."""
    if not has_privileges():
        raise BadInput(
            "cluster: making network namespaces needs root; use sudo, or psring cluster shell, where you are root"
        )
    nap.build()
    with _locked(cluster.name):
        if state_file(cluster.name).exists():
            raise BadInput(f"cluster: {cluster.name!r} is up already; psring cluster down --name {cluster.name}")
        _remove(cluster.name)  # left by an `up` that was killed
        try:
            _build(cluster)
        except BaseException:
            _remove(cluster.name)
            raise
        etc_hosts_file(cluster.name).write_text(cluster.etc_hosts(), encoding="utf-8")
        hostfile(cluster.name).write_text(cluster.hostfile(), encoding="utf-8")
        state_file(cluster.name).write_text(json.dumps(asdict(cluster)), encoding="utf-8")


@contextlib.contextmanager
def running(cluster: Cluster, environ: Mapping[str, str] | None = None) -> Iterator[None]:
    """Bring a cluster up for a block, and down after it, however it ends.

    `environ` is the environment of the processes that do it, which a template forks if it names one.
    """
    # In subprocesses: pyroute2 forks, and its children must not inherit this process's signal handlers.
    links = ["--num-nodes", str(len(cluster.nodes)), "--link", cluster.link]
    links += ["--num-servers", str(cluster.num_servers)]
    delay = ["--delay", cluster.delay] if cluster.delay else []
    try:
        control = ["--congestion-control", cluster.congestion_control]
        _psring(["up", "--name", cluster.name, *links, *delay, *control], environ)
        yield
    finally:
        _psring(["down", "--name", cluster.name], environ)


def _psring(arguments: Sequence[str], environ: Mapping[str, str] | None) -> None:
    result = subprocess.run(
        [*FORKED_PSRING, "cluster", *arguments], env=environ,
        capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False, start_new_session=True,
    )  # fmt: skip
    if result.returncode != 0:
        raise BadInput((result.stderr.splitlines() or ["cluster: no reason given"])[-1].removeprefix("psring: "))


def _build(cluster: Cluster) -> None:
    switch = cluster.namespace("sw")
    netns.create(switch)
    with NetNS(switch) as ports:
        ports.link("add", ifname="br0", kind="bridge")
        bridge = _index(ports, "br0")
        ports.link("set", index=bridge, state="up")
        for node, rate in zip(cluster.nodes, cluster.rates, strict=True):
            netns.create(cluster.namespace(node))
            _set_congestion_control(cluster, node)
            with NetNS(cluster.namespace(node)) as inside:
                port = f"p-{node}"
                peer = {"ifname": port, "net_ns_fd": switch}
                inside.link("add", ifname=INTERFACE, kind="veth", peer=peer)
                card = _index(inside, INTERFACE)
                inside.addr("add", index=card, address=cluster.address(node), prefixlen=24)
                for index in (_index(inside, "lo"), card):
                    inside.link("set", index=index, state="up")
                _shape(inside, card, rate, cluster.delay_s())
            ports.link("set", index=_index(ports, port), master=bridge, state="up")
            _shape(ports, _index(ports, port), rate)


def _index(namespace: Any, ifname: str) -> int:
    (index,) = namespace.link_lookup(ifname=ifname)
    return int(index)


def _shape(namespace: Any, index: int, rate: int, delay_s: float = 0.0) -> None:
    """Limit what leaves an interface to a rate in bits per second (tc-tbf), and delay it (tc-netem)."""
    parent = {}
    if delay_s:
        try:
            namespace.tc("add", "netem", index=index, handle="2:", delay=round(delay_s * 1e6), limit=100_000)
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            raise BadInput("delay: this kernel has no netem (sch_netem); leave the delay out") from None
        parent = {"parent": "2:1"}
    namespace.tc(
        "add",
        "tbf",
        index=index,
        handle="1:",
        rate=f"{rate // 1000}kbit",
        burst=BURST_BYTES,
        latency=QUEUE_LATENCY,
        **parent,
    )


def set_loopback_up() -> None:
    """Set this network namespace's `lo` up: in a new namespace it is down."""
    with IPRoute() as here:
        here.link("set", index=_index(here, "lo"), state="up")


def _set_congestion_control(cluster: Cluster, node: str) -> None:
    """Set a node's TCP congestion control; BadInput if this kernel does not allow it in a namespace."""
    netns.pushns(cluster.namespace(node))
    try:
        Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text(cluster.congestion_control)
    except OSError:
        raise BadInput(
            f"congestion_control: this kernel does not allow {cluster.congestion_control} in a namespace; use reno, "
            "or add it to the host's net.ipv4.tcp_allowed_congestion_control"
        ) from None
    finally:
        netns.popns()


def down(name: str) -> None:
    """Kill every process on a cluster's nodes and remove its namespaces; does nothing if there is none."""
    check_name(name)
    if not has_privileges():
        raise BadInput("cluster: removing network namespaces needs root; use sudo")
    with _locked(name):
        _remove(name)


def _remove(name: str) -> None:
    namespaces = list(NAMESPACES.glob(f"psring-{name}-*")) if NAMESPACES.exists() else []
    here = Path("/proc/self/ns/net").stat().st_ino
    _kill_processes({path.stat().st_ino for path in namespaces} - {here})
    for path in namespaces:
        netns.remove(path.name)
    for file in (state_file(name), etc_hosts_file(name), hostfile(name)):
        file.unlink(missing_ok=True)


def _kill_processes(namespaces: set[int]) -> None:
    """Kill all processes in these network namespaces (inode numbers); BadInput if one does not end."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while inside := processes(namespaces):
        if time.monotonic() > deadline:
            raise BadInput(f"cluster: process {inside[0]} does not end; kill it, then psring cluster down")
        for pid in inside:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def processes(namespaces: set[int]) -> list[int]:
    """Process ids in any of these network namespaces (inode numbers), without zombies."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        with contextlib.suppress(OSError):
            inode = Path(f"/proc/{process.pid}/ns/net").stat().st_ino
            if inode in namespaces and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def describe() -> list[str]:
    """One line per node of all clusters that are up: its rate and the bytes that its link has carried."""
    lines = []
    for path in sorted(STATE.glob("*.json")):
        try:
            found = find(path.stem)
            for node, rate in zip(found.nodes, found.rates, strict=True):
                sent, received = counters(found, node)
                lines.append(f"{found.name} {node} {rate / 1e6:g} mbit sent_bytes={sent} received_bytes={received}")
        except BadInput as error:
            lines.append(str(error))
        except (OSError, NetlinkError):
            lines.append(f"{path.stem}: its nodes are gone or not complete; psring cluster down --name {path.stem}")
    return lines or ["no cluster is up"]


def counters(cluster: Cluster, node: str) -> tuple[int, int]:
    """Bytes (sent, received) that the kernel has counted on a node's link, frame headers included."""
    with NetNS(cluster.namespace(node)) as inside:
        (link,) = inside.get_links(_index(inside, INTERFACE))
        stats = link.get_attr("IFLA_STATS64")
    return int(stats["tx_bytes"]), int(stats["rx_bytes"])


def has_privileges() -> bool:
    """Whether this process has CAP_SYS_ADMIN and CAP_NET_ADMIN (capabilities(7)), which namespaces and links need."""
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff"))
    return all(effective >> capability & 1 for capability in (_CAP_SYS_ADMIN, _CAP_NET_ADMIN))


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    STATE.mkdir(exist_ok=True)
    try:
        with FileLock(STATE / f"{name}.lock", timeout=LOCK_TIMEOUT_S):
            yield
    except Timeout:
        raise BadInput(f"cluster: {name!r} is being brought up or down by another command; wait for it") from None
