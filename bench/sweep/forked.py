"""What a process that a template has forked takes over from its client, in whose place it runs."""

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

REQUEST_S = 10.0  # a client that connects and does not ask within this time is dropped
# A process's title is where its arguments were when it started, what /proc says of its environment where that was: a
# template is started with so much room there.
TITLE_BYTES, ENVIRON_BYTES, ROOM = 1 << 12, 1 << 16, "PSRING_ROOM"
_CLONE = {"net": 0x40000000, "uts": 0x04000000, "ipc": 0x08000000, "mnt": 0x00020000}


def receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return a client's request and open files: its working directory, its namespaces, then those it inherited."""
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
    return found, [above(found["files"], file) for file in files]


def above(numbers: Sequence[int], file: int) -> int:
    """Move an open file out of the way of files that shall have these numbers; return its own."""
    moved = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, max([2, *numbers]) + 1)
    os.close(file)
    return moved


def become(request: dict[str, Any], files: Sequence[int]) -> None:
    """Take over a client's standing; OSError or ValueError where this process may not."""
    os.setsid()
    processes.die_with_parent()
    if os.getppid() == 1:
        os._exit(1)
    processes.rank_start = "template"
    folder, namespaces, inherited = files[0], files[1 : 1 + len(NAMESPACES)], files[1 + len(NAMESPACES) :]
    _enter(namespaces)
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
    _take_environment(request["environ"])
    _set_title([*processes.PSRING, *request["arguments"]], request["environ"])


def _enter(namespaces: Sequence[int]) -> None:
    for name, file in zip(NAMESPACES, namespaces, strict=True):
        if os.fstat(file).st_ino != os.stat(f"/proc/self/ns/{name}").st_ino:
            node.join(file, _CLONE[name])


def _take_environment(environ: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environ)
    if environ.get("PYTHONUNBUFFERED"):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]  # they are text files


def _set_title(arguments: Sequence[str], environ: dict[str, str]) -> None:
    """Have `ps` and /proc show this process as if it had been executed."""
    begin, end, environ_begin, environ_end = map(int, Path("/proc/self/stat").read_text().rsplit(" ", 5)[1:5])
    _overwrite(begin, end, arguments)
    _overwrite(environ_begin, environ_end, [f"{name}={value}" for name, value in environ.items()])


def _overwrite(begin: int, end: int, words: Sequence[str]) -> None:
    text = b"".join(os.fsencode(word) + b"\0" for word in words)[: end - begin - 1]
    ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)
