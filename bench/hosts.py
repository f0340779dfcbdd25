"""Host files, parsed once for every launcher; hosts and interfaces are named if they do not exist."""

from __future__ import annotations

import ipaddress
import itertools
import re
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.config import BadInput, RunConfig, shorten
from bench.files import read_text

MAX_BYTES = 1 << 20
MAX_SLOTS = 1 << 14
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?"
_LINE = re.compile(rf"({_NAME})(?:\s*:\s*(\d{{1,5}})|((?:\s+[a-z_-]+\s*=\s*\d{{1,5}})*))")


@dataclass(frozen=True)
class Host:
    """A line of a host file: a host, the ranks that it takes, and the line's number."""

    name: str
    slots: int
    line: int


def read_hostfile(path: Path) -> list[Host]:
    """Return a file's hosts in order: `name`, `name slots=4` or `name:4` per line, `#` begins a comment; without a
    number a host takes one rank. BadInput names the line that is wrong.
    """
    try:
        text = read_text(path, MAX_BYTES)
    except ValueError as error:
        raise BadInput(f"hostfile: {path} cannot be read: {error}; write a line 'host slots=4' per host") from None
    hosts = []
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.partition("#")[0].strip()
        if content:
            hosts.append(_parse(content, number, f"hostfile: {path}, line {number}"))
    if not hosts:
        raise BadInput(f"hostfile: {path} has no host; write a line 'host slots=4' per host")
    return hosts


def _parse(content: str, number: int, where: str) -> Host:
    found = _LINE.fullmatch(content)
    options = dict(re.findall(r"([a-z_-]+)\s*=\s*(\d+)", found[3] or "")) if found else {}
    if found is None or set(options) - {"slots", "max_slots", "max-slots"}:
        raise BadInput(f"{where}: {shorten(content)} is not understood; write 'host', 'host slots=4' or 'host:4'")
    slots = int(found[2] or options.get("slots", 1))
    if not 1 <= slots <= MAX_SLOTS:
        raise BadInput(f"{where}: {slots} slots; write a number from 1 to {MAX_SLOTS}")
    return Host(found[1], slots, number)


def check_hosts(config: RunConfig) -> None:
    """Raise BadInput if a launcher could not reach a run's hosts: no such name or interface, or too few slots."""
    if config.world_size == 1 or config.launcher == "srun":
        return
    if config.hostfile is not None:
        hosts = read_hostfile(Path(config.hostfile))
        slots = sum(host.slots for host in hosts)
        if config.launcher == "horovodrun" and slots < config.world_size:
            raise BadInput(
                f"hostfile: {config.hostfile} has {slots} slots, and horovodrun needs one for each of "
                f"{config.world_size} ranks; add hosts or slots"
            )
        for host in hosts:
            _check_name(host.name, f"hostfile: {config.hostfile}, line {host.line}")
    if config.launcher == "horovodrun":
        _check_name(socket.gethostname(), "launcher: horovodrun must find this machine by its name, and")
    for word in (config.network_interface or "").split(","):
        if word:
            _check_interface(word)


def _check_name(name: str, where: str) -> None:
    try:
        socket.getaddrinfo(name, None)
    except (OSError, UnicodeError):
        raise BadInput(f"{where}: the name {name!r} has no address; correct it, or add it to /etc/hosts") from None


def _check_interface(word: str) -> None:
    """Raise BadInput unless this machine, which the launcher runs on, has an interface or an address in a network."""
    found = psutil.net_if_addrs()
    if "/" not in word:
        if word not in found:
            raise BadInput(f"network_interface: this machine has no {word!r}; it has {', '.join(sorted(found))}")
        return
    network = ipaddress.ip_network(word, strict=False)
    addresses = [address.address.partition("%")[0] for each in found.values() for address in each if
                 address.family in (socket.AF_INET, socket.AF_INET6)]  # fmt: skip
    if not any(ipaddress.ip_address(address) in network for address in addresses):
        raise BadInput(
            f"network_interface: this machine has no address in {word}; it has {', '.join(sorted(addresses))}"
        )


def make_hostfile(config: RunConfig, *, mpich: bool = False) -> str:
    """Return the host file that a run's launcher gets, one line per host.

    horovodrun starts a rank in every slot, so it gets no more slots than ranks. MPICH's mpirun reads `host:4`.
    """
    assert config.hostfile is not None
    slots: dict[str, int] = {}  # horovodrun and Open MPI 5 misread a host that is there twice
    for host in read_hostfile(Path(config.hostfile)):
        slots[host.name] = slots.get(host.name, 0) + host.slots
    if config.launcher == "horovodrun":
        ends = dict(zip(slots, itertools.accumulate(slots.values()), strict=True))
        slots = {name: min(size, config.world_size - ends[name] + size) for name, size in slots.items()}
    form = "{}:{}\n" if mpich else "{} slots={}\n"
    return "".join(form.format(name, size) for name, size in slots.items() if size > 0)
