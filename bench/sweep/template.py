"""Template processes: they have imported torch and MPI, and fork ranks at a tenth of the cost of starting them.

The process that launches ranks (`environment`) makes a socket and a template that listens on it; bench/fork_client.py,
which the launcher starts in a rank's place, connects. One template per kind of process (`fork_client.kind`), started
when first needed, ended with the process that started it, and with it all that it has forked.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from bench import fork_client
from bench.fork_client import FOLDER
from bench.processes import PSRING, terminate_with_parent
from bench.sweep import forked

OFF = "PSRING_NO_TEMPLATE"
END_S = 5.0
_started: dict[str, subprocess.Popen[bytes]] = {}  # by kind
_refused: list[str] = []


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what processes with this environment need to be forked from a template; start one if there is none.

    Nothing if PSRING_NO_TEMPLATE is set, or if no template can be started here (`complaints`).
    """
    if environ.get(OFF):
        return {}
    name, given = fork_client.kind(environ), environ.get(FOLDER)
    if given and Path(given, name).exists():
        return {FOLDER: given}
    if name not in _started:
        try:
            _started[name] = _start(_folder() / name, environ)
        except OSError as error:
            _refused.append(str(error))
            return {}
    return {FOLDER: str(_folder())}


def complaints() -> list[str]:
    """Why ranks were executed although templates are wanted: a line per template that has ended or never started."""
    ended = [name for name, process in _started.items() if process.poll() is not None]
    last = [((_folder() / f"{name}.log").read_text().splitlines() or ["no output"])[-1] for name in ended]
    return [f"ranks are not forked: {reason}" for reason in (*_refused, *last)]


@cache
def _folder() -> Path:
    """Return this process's private folder for sockets, which is removed when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="psring-template-"))
    owner = os.getpid()

    def end() -> None:
        if os.getpid() == owner:
            for process in _started.values():
                process.kill()
                process.wait(END_S)
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return folder


def _start(path: Path, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a template that listens at a path. Clients may connect at once; they are served when it is ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, path.with_suffix(".log").open("wb") as log:
        listener.bind(str(path))
        listener.listen(4096)
        argv = [*PSRING, "template", str(listener.fileno()), "x" * forked.TITLE_BYTES]
        # OpenBLAS would start a thread per core; who forks must have but one thread.
        own = {**environ, "OPENBLAS_NUM_THREADS": "1", forked.ROOM: "x" * forked.ENVIRON_BYTES}
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=own, pass_fds=[listener.fileno()],
            start_new_session=True, preexec_fn=terminate_with_parent,
        )  # fmt: skip


def serve(listener_fd: int) -> list[str]:
    """Fork a process per client until this process is ended; in each forked process, return its arguments."""
    import bench.rank.preload  # noqa: F401  # imported here: the process that starts a template needs no torch

    gc.collect()
    gc.freeze()  # or a collection would write to, and so copy, every page that is shared
    listener = socket.socket(fileno=listener_fd)
    folder = Path(listener.getsockname()).parent
    owner = os.getpid()
    try:
        return _Forker(listener).run()
    finally:
        if os.getpid() == owner and os.getppid() == 1:  # who started this one was killed and could not clean up
            shutil.rmtree(folder, ignore_errors=True)


class _Forker:
    """The loop of a template: requests, signals and hang-ups from clients, ends of forked processes."""

    def __init__(self, listener: socket.socket) -> None:
        self._clients: dict[int, socket.socket] = {}  # pid of the forked process: its client
        self._listener = listener
        self._wake, wake = socket.socketpair()
        self._wake.setblocking(False)
        wake.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._sockets = [listener, self._wake, wake]
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    def run(self) -> list[str]:
        """Serve; return the arguments in a forked process."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    arguments = self._accept()
                    if arguments is not None:
                        return arguments
                elif key.fileobj is self._wake:
                    self._reap()
                else:
                    self._pass_on(key.data)

    def _accept(self) -> list[str] | None:
        """Fork a process for a client; None in the template."""
        client, _ = self._listener.accept()
        try:
            request, files = forked.receive(client)
        except (OSError, ValueError, EOFError, TypeError):
            client.close()  # it executes the command itself
            return None
        pid = os.fork()
        if pid == 0:
            self._leave()
            with socket.socket(fileno=forked.above(request["files"], client.detach())) as kept:
                forked.become(request, files)
                kept.sendall(b"+")
            return list(request["arguments"])
        for file in files:
            os.close(file)
        self._clients[pid] = client
        self._selector.register(client, selectors.EVENT_READ, pid)
        return None

    def _leave(self) -> None:
        """In a forked process: close the files of the template, restore its signal handlers."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self._selector.close()
        for connection in [*self._sockets, *self._clients.values()]:
            connection.close()

    def _pass_on(self, pid: int) -> None:
        """Send a forked process the signals that its client got; a client that is gone takes it along."""
        if pid not in self._clients:
            return
        try:
            numbers = self._clients[pid].recv(64)
        except OSError:
            numbers = b""
        if not numbers:
            self._selector.unregister(self._clients.pop(pid))
        for number in numbers or [signal.SIGKILL]:
            os.kill(pid, number)

    def _reap(self) -> None:
        """Tell clients how their processes have ended."""
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(4096)
        with contextlib.suppress(ChildProcessError):  # there is none left
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                client = self._clients.pop(pid, None)
                if client is not None:
                    self._selector.unregister(client)
                    with contextlib.suppress(OSError):
                        client.sendall(str(status).encode())
                    client.close()
