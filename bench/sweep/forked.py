"""A forked process takes over what its client inherited: environment, files, limits, namespaces, command line."""

from __future__ import annotations

import ctypes
import fcntl
import marshal
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import processes
from bench.fork_client import LENGTH_BYTES, MAX_FILES, NAMESPACES
from bench.nodes import node

REQUEST_S = 10.0  # a client that has sent no request by then is disconnected
# /proc reads a process's command line and environment from the memory where they were at its start. A template is
# started with arguments and a variable (PADDING) of these sizes, so that a forked process can write its own there.
TITLE_BYTES, ENVIRON_BYTES, PADDING = 1 << 12, 1 << 16, "PSRING_PADDING"
_CLONE = {"net": 0x40000000, "uts": 0x04000000, "ipc": 0x08000000, "mnt": 0x00020000}


def receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return a client's request and its open files: working directory, namespaces, then the inherited ones."""
    client.settimeout(REQUEST_S)
    length, files, _, _ = socket.recv_fds(client, LENGTH_BYTES, 1 + len(NAMESPACES) + MAX_FILES)
    request = bytearray()
    while len(request) < int.from_bytes(length, "big"):
        part = client.recv(1 << 16)
        if not part:
            raise EOFError
        request += part
    client.settimeout(None)
    found = marshal.loads(request)
    return found, [move_above(found["files"], file) for file in files]


def move_above(numbers: Sequence[int], file: int) -> int:
    """Give an open file a number above all of these, which other files will get; return it."""
    moved = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, max([2, *numbers]) + 1)
    os.close(file)
    return moved


def apply(request: dict[str, Any], files: Sequence[int]) -> None:
    """Make this process what its client is; OSError or ValueError where the kernel forbids it."""
    os.setsid()
    processes.die_with_parent()
    if os.getppid() == 1:  # the template ended before the line above
        os._exit(1)
    processes.rank_start = "template"
    folder, namespaces, inherited = files[0], files[1 : 1 + len(NAMESPACES)], files[1 + len(NAMESPACES) :]
    _enter_namespaces(namespaces)
    os.fchdir(folder)
    for number, file in zip(request["files"], inherited, strict=True):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    os.umask(request["umask"])
    os.setpriority(os.PRIO_PROCESS, 0, request["nice"])
    os.sched_setaffinity(0, request["cores"])
    for limit, soft, hard in request["limits"]:
        if resource.getrlimit(limit) != (soft, hard):
            resource.setrlimit(limit, (soft, hard))
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    _set_environment(request["environ"])
    _set_title([*processes.PSRING, *request["arguments"]], request["environ"])


def _enter_namespaces(namespaces: Sequence[int]) -> None:
    for name, file in zip(NAMESPACES, namespaces, strict=True):
        if os.fstat(file).st_ino != os.stat(f"/proc/self/ns/{name}").st_ino:
            node.join(file, _CLONE[name])


def _set_environment(environ: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environ)
    if environ.get("PYTHONUNBUFFERED"):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]  # both are text files


def _set_title(arguments: Sequence[str], environ: dict[str, str]) -> None:
    """Make `ps` and /proc show this process's own command line and environment."""
    # Fields 48 to 51 of 52, proc_pid_stat(5): arg_start, arg_end, env_start, env_end.
    begin, end, environ_begin, environ_end = map(int, Path("/proc/self/stat").read_text().rsplit(" ", 5)[1:5])
    _overwrite(begin, end, arguments)
    _overwrite(environ_begin, environ_end, [f"{name}={value}" for name, value in environ.items()])


def _overwrite(begin: int, end: int, words: Sequence[str]) -> None:
    text = b"".join(os.fsencode(word) + b"\0" for word in words)[: end - begin - 1]
    ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)
