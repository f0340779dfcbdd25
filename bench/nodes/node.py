"""Move a process onto an emulated node: its network, host name, /sys and /etc/hosts."""

from __future__ import annotations

import ctypes
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from bench.config import CLUSTER_VARIABLE, BadInput
from bench.nodes import nap
from bench.nodes.layout import NAMESPACES, Cluster, etc_hosts_file, find
from bench.processes import FORKED_PSRING
from strategies.environment import mpi_environment

_BIN = Path(__file__).with_name("bin")
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWNET = 0x00020000, 0x04000000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def execute(cluster: Cluster, node: str, command: Sequence[str]) -> NoReturn:
    """Replace this process by a command on a node; BadInput if the node or the command does not exist."""
    if node not in cluster.nodes:
        raise BadInput(f"cluster: there is no node {node!r}; nodes are n0 to {cluster.nodes[-1]}")
    enter(cluster, node)
    execute_here(command, environment(cluster, os.environ))


def execute_here(command: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Replace this process by a command; BadInput if it cannot be executed."""
    try:
        os.execvpe(command[0], list(command), dict(environ))
    except OSError as error:
        raise BadInput(f"cluster: cannot run {command[0]}: {error.strerror}") from None


def environment(cluster: Cluster, environ: Mapping[str, str]) -> dict[str, str]:
    """Return a node process's environment: the cluster's name, psring's ssh in PATH, MPI's settings, the nap shim."""
    path = os.pathsep.join([str(_BIN), environ.get("PATH", os.defpath)])
    own = {CLUSTER_VARIABLE: cluster.name, "PSRING_COMMAND": shlex.join(FORKED_PSRING), "PATH": path}
    return {**environ, **mpi_environment(environ), **own, **nap.environment(environ)}


def enter(cluster: Cluster, node: str) -> None:
    """Move this process to a node's network namespace, and to mount and host name namespaces of its own."""
    with (NAMESPACES / cluster.namespace(node)).open() as network:
        join(network.fileno(), _CLONE_NEWNET)
    unshare(_CLONE_NEWUTS | _CLONE_NEWNS)
    _check(_libc.sethostname(node.encode(), len(node)), "sethostname")
    make_mounts_private()
    mount("sysfs", "/sys", "sysfs")  # shows the node's own interfaces
    mount(str(etc_hosts_file(cluster.name)), "/etc/hosts", None, _MS_BIND)


def remote_shell(arguments: Sequence[str]) -> NoReturn:
    """Replace ssh: run `[options] HOST COMMAND...`, as mpirun (plm_rsh_agent) and horovodrun call it.

    Horovod puts options behind the host too. Of ssh(1)'s options with a value, those that launchers use are known.
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


def join(namespace: int, kind: int) -> None:
    """Enter a namespace, given as an open file and its CLONE_NEW* flag (setns(2)); OSError if the kernel refuses."""
    _check(_libc.setns(namespace, kind), "setns")


def unshare(namespaces: int) -> None:
    """Move this process to new namespaces (unshare(2)); OSError if the kernel refuses."""
    _check(_libc.unshare(namespaces), "unshare")


def make_mounts_private() -> None:
    """Keep mounts of this mount namespace from propagating to others."""
    mount(None, "/", None, _MS_REC | _MS_PRIVATE)


def mount(source: str | None, target: str, kind: str | None, flags: int = 0) -> None:
    """Mount (mount(2)); OSError if the kernel refuses."""
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), None), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
