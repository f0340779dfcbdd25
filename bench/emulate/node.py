"""Becoming a process on a node: its network, its host name, its /sys and its /etc/hosts."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import NoReturn

from pyroute2 import netns

from bench.config import CLUSTER_VARIABLE, BadInput
from bench.emulate.cluster import Cluster, find, hosts_file

_CLONE_NEWNS, _CLONE_NEWUTS = 0x00020000, 0x04000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def execute(cluster: Cluster, node: str, command: Sequence[str]) -> NoReturn:
    """Replace this process by a command on a node; BadInput if there is no such node or command."""
    if node not in cluster.nodes:
        raise BadInput(f"cluster: there is no node {node!r}; nodes are n0 to {cluster.nodes[-1]}")
    enter(cluster, node)
    try:
        os.execvpe(command[0], list(command), {**os.environ, CLUSTER_VARIABLE: cluster.name})
    except OSError as error:
        raise BadInput(f"cluster: cannot run {command[0]}: {error.strerror}") from None


def enter(cluster: Cluster, node: str) -> None:
    """Move this process onto a node. Its mounts and its host name are its own from now on."""
    netns.setns(cluster.namespace(node))
    _check(_libc.unshare(_CLONE_NEWUTS | _CLONE_NEWNS), "unshare")
    _check(_libc.sethostname(node.encode(), len(node)), "sethostname")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("sysfs", "/sys", "sysfs", 0)  # shows the node's own interfaces
    _mount(str(hosts_file(cluster.name)), "/etc/hosts", None, _MS_BIND)


def remote_shell(arguments: Sequence[str]) -> NoReturn:
    """Stand in for ssh: `[options] HOST COMMAND...`, as mpirun (plm_rsh_agent) and horovodrun call it.

    Horovod puts options after the host too. Options with a value are those of ssh(1) that launchers use.
    """
    words = list(arguments)
    host = None
    while words and (host is None or words[0].startswith("-")):
        word = words.pop(0)
        if word in ("-o", "-p", "-i", "-l"):
            words.pop(0)
        elif not word.startswith("-"):
            host = word
    if host is None or not words:
        raise BadInput("cluster agent: expected [options] HOST COMMAND")
    cluster = find(os.environ.get(CLUSTER_VARIABLE, "psring"))
    execute(cluster, host, ["/bin/sh", "-c", " ".join(words)])


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), None), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
