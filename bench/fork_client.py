"""Start a psring command by having a template process fork it: `python -I -S fork_client.py ARGUMENTS...`.

Importing torch takes 2 CPU-seconds per rank, this script 0.02: it imports neither site-packages nor psring. It sends
its arguments, environment, limits, open files and namespaces over a Unix socket to a template
(bench/sweep/template.py), which has imported torch and forks a process with them. This script waits for that process,
forwards signals to it and exits with its exit code or signal. Where no template fits, it executes
`python -m bench.cli ARGUMENTS...` instead.
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

FOLDER = "PSRING_TEMPLATE"  # names the folder of the templates' sockets
START_S = 60.0  # without a forked process by then, the command is executed
STARTED = b"+"  # what a forked process sends before it runs the command
NAMESPACES = ("net", "uts", "ipc", "mnt")  # the forked process enters those of its client
LENGTH_BYTES = 8
MAX_FILES = 200  # in one message (SCM_RIGHTS), below the kernel's 253
# Prefixes of variables that are read when a process starts or imports a library: a forked process is too late to set
# them. LD_LIBRARY_PATH is not among them: launchers extend it, and a template has already loaded MPI.
_READ_AT_START = ("LD_PRELOAD", "PYTHON", "LC_", "LANG", "OMP_", "GOMP_", "KMP_", "MKL_", "TORCH", "MALLOC_", "GLIBC_")
_APPLIED_LATER = ("PYTHONUNBUFFERED",)  # a forked process applies these itself
_RIGHTS = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp")  # lines of /proc/self/status
_LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2


def template_name(environ: Mapping[str, str]) -> str:
    """Return the name (8 hex digits) of the template for a process with this environment.

    Processes have equal names if they agree in all that a forked process cannot change: rights, cgroup, user and pid
    namespace, and variables that are read at the start.
    """
    with open("/proc/self/cgroup") as cgroup, open("/proc/self/status") as status:
        rights = [line for line in status if line.startswith(_RIGHTS)]
        fixed = [cgroup.read(), rights, *(os.readlink(f"/proc/self/ns/{name}") for name in ("user", "pid"))]
    settings = sorted(
        f"{name}={value}"
        for name, value in environ.items()
        if name.startswith(_READ_AT_START) and name not in _APPLIED_LATER
    )
    return f"{zlib.crc32(repr([fixed, settings]).encode()):08x}"


def main() -> NoReturn:
    """Run the command in a process that a template forks; execute it in this one where there is no template."""
    connection = _request_fork(sys.argv[1:])
    if connection is None:
        no_folder = ["-P"] if sys.version_info >= (3, 11) else []  # as bench.processes.PSRING
        os.execv(sys.executable, [sys.executable, *no_folder, "-m", "bench.cli", *sys.argv[1:]])

    def forward(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(OSError):  # the process has ended
            connection.sendall(bytes([number]))

    for number in _FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)
    answer = b""
    with contextlib.suppress(OSError):
        while part := connection.recv(64):
            answer += part
    _exit_as(int(answer) if answer else signal.SIGKILL)  # without an answer, template and process were killed


def _request_fork(arguments: list[str]) -> socket.socket | None:
    """Ask the template for a process; return the connection to it once it runs, None if there is no template."""
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
        connection.connect(f"{folder}/{template_name(os.environ)}")
        socket.send_fds(connection, [len(request).to_bytes(LENGTH_BYTES, "big")], [*files, *inherited])
        connection.sendall(request)
        started = connection.recv(1) == STARTED
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
    """Return the files that this process inherited: standard streams, and what a launcher opened (MPICH: PMI_FD)."""
    numbers = sorted(map(int, os.listdir("/proc/self/fd")))
    found = []
    for number in numbers:
        with contextlib.suppress(OSError):  # listdir's own file is closed by now
            if os.get_inheritable(number):
                found.append(number)
    return found[:MAX_FILES]


def _describe(arguments: list[str]) -> dict[str, Any]:
    """Return what a forked process must set to be like this one, beside open files."""
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


def _exit_as(status: int) -> NoReturn:
    """Exit with the exit code or by the signal of a wait status (waitpid(2))."""
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
