"""Start a psring command by having a template process fork it: `python -I -S fork_client.py ARGUMENTS...`.

Importing torch costs 2 CPU-seconds a rank, this script 0.02: it imports neither site-packages nor psring. It sends what
makes this process itself (arguments, environment, limits, open files, namespaces) over a Unix socket to a template
(bench/sweep/template.py) that has imported everything, and stays in the forked process's place: it forwards signals and
ends as that process ends. Where there is no template like this process, it executes `python -m bench.cli ARGUMENTS...`.
"""

from __future__ import annotations

import contextlib
import ctypes
import marshal
import os
import resource
import signal
import socket
import sys
import zlib
from collections.abc import Mapping
from types import FrameType
from typing import Any, NoReturn

FOLDER = "PSRING_TEMPLATE"  # the folder of the templates' sockets, one per kind
START_S = 60.0  # a template that has not forked by then is not waited for
NAMESPACES = ("net", "uts", "ipc", "mnt")  # the forked process enters those of its client
LENGTH_BYTES = 8
MAX_FILES = 200  # in one message (SCM_RIGHTS), below the kernel's 253
# What takes effect when a process starts or imports a library, so that a forked process cannot change it any more.
# LD_LIBRARY_PATH is not among them: launchers extend it, and a template has loaded MPI already.
_AT_START = ("LD_PRELOAD", "PYTHON", "LC_", "LANG", "OMP_", "GOMP_", "KMP_", "MKL_", "TORCH", "MALLOC_", "GLIBC_")
_NOT_AT_START = ("PYTHONUNBUFFERED",)
_RIGHTS = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp")  # lines of /proc/self/status
_LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2


def kind(environ: Mapping[str, str]) -> str:
    """Return a name that is equal for two processes if one may be forked in place of the other: 8 hex digits."""
    with open("/proc/self/cgroup") as cgroup, open("/proc/self/status") as status:
        rights = [line for line in status if line.startswith(_RIGHTS)]
        own = [cgroup.read(), rights, *(os.readlink(f"/proc/self/ns/{name}") for name in ("user", "pid"))]
    settings = sorted(
        f"{name}={value}" for name, value in environ.items() if name.startswith(_AT_START) and name not in _NOT_AT_START
    )
    return f"{zlib.crc32(repr([own, settings]).encode()):08x}"


def main() -> NoReturn:
    """Be the process that a template forks, or execute it."""
    connection = _ask(sys.argv[1:])
    if connection is None:
        no_folder = ["-P"] if sys.version_info >= (3, 11) else []  # as bench.processes.PSRING
        os.execv(sys.executable, [sys.executable, *no_folder, "-m", "bench.cli", *sys.argv[1:]])

    def forward(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(OSError):  # it has ended
            connection.sendall(bytes([number]))

    for number in _FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)
    answer = b""
    with contextlib.suppress(OSError):
        while part := connection.recv(64):
            answer += part
    _end_like(int(answer) if answer else signal.SIGKILL)  # no answer: the template was killed, and its processes too


def _ask(arguments: list[str]) -> socket.socket | None:
    """Return a connection to the forked process once it runs; None if there is none."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return None
    libc, before = ctypes.CDLL(None), ctypes.c_int()
    libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(before))
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # no rank outlives its launcher
    inherited = _inherited_files()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    files = [os.open(".", os.O_RDONLY), *(os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in NAMESPACES)]
    request = marshal.dumps({**_describe(arguments), "files": inherited})
    try:
        connection.settimeout(START_S)
        connection.connect(f"{folder}/{kind(os.environ)}")
        socket.send_fds(connection, [len(request).to_bytes(LENGTH_BYTES, "big")], [*files, *inherited])
        connection.sendall(request)
        started = connection.recv(1) == b"+"
        connection.settimeout(None)
    except OSError:
        started = False
    for file in files:
        os.close(file)
    if not started:
        connection.close()
        libc.prctl(_PR_SET_PDEATHSIG, before.value)
    return connection if started else None


def _inherited_files() -> list[int]:
    """Open files that came with this process: its standard streams, and what a launcher gave it (MPICH's PMI_FD)."""
    numbers = sorted(map(int, os.listdir("/proc/self/fd")))
    found = []
    for number in numbers:
        with contextlib.suppress(OSError):  # the listing's own
            if os.get_inheritable(number):
                found.append(number)
    return found[:MAX_FILES]


def _describe(arguments: list[str]) -> dict[str, Any]:
    """What a forked process must take over from this one, beside open files."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "arguments": arguments,
        "environ": dict(os.environ),
        "umask": umask,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "cores": sorted(os.sched_getaffinity(0)),
        "limits": [(limit, *resource.getrlimit(limit)) for limit in _LIMITS],
        "ignored": [int(number) for number in _FORWARDED if signal.getsignal(number) == signal.SIG_IGN],
    }


def _end_like(status: int) -> NoReturn:
    """End with a wait status (waitpid(2)): the same exit code, or the same signal."""
    if os.WIFEXITED(status):
        os._exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


if __name__ == "__main__":
    main()
