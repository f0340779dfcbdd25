"""Template processes: they import torch and MPI once and fork the ranks, which then need not import them.

1. `environment` starts a template, which listens on a Unix socket, and returns the variable that names its folder.
2. A launcher starts bench/fork_client.py for each rank. It connects to the template and sends what it inherited.
3. The template forks; the forked process applies what the client sent (forked.py) and is the rank.
4. The client stays until the rank ends, forwards signals to it and exits as it does.

A template ends with the process that started it, and its forked processes end with the template. A process can be
forked only from a template that started under equal conditions: there is one template per `fork_client.template_name`.
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
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from bench import fork_client, private
from bench.fork_client import FOLDER
from bench.processes import PSRING, terminate_with_parent
from bench.sweep import forked

DISABLED = "PSRING_NO_TEMPLATE"
END_S = 5.0
_templates: dict[str, subprocess.Popen[bytes]] = {}  # by name
_start_errors: list[str] = []


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variable by which processes with this environment find their template; start it if there is none.

    Empty if PSRING_NO_TEMPLATE is set or no template can be started (`errors` says why): ranks are then executed.
    """
    if environ.get(DISABLED):
        return {}
    name, given = fork_client.template_name(environ), environ.get(FOLDER)
    if given and Path(given, name).exists():
        return {FOLDER: given}
    if name not in _templates:
        try:
            _templates[name] = _start(_folder() / name, environ)
        except OSError as error:
            _start_errors.append(str(error))
            return {}
    return {FOLDER: str(_folder())}


def errors() -> list[str]:
    """Return a line per template that could not be started or has ended: its ranks were executed instead of forked."""
    ended = [name for name, process in _templates.items() if process.poll() is not None]
    last_lines = [((_folder() / f"{name}.log").read_text().splitlines() or ["no output"])[-1] for name in ended]
    return [f"ranks are not forked: {reason}" for reason in (*_start_errors, *last_lines)]


@cache
def _folder() -> Path:
    """Return this process's private folder of sockets and logs; templates end with the process."""
    folder, owner = private.temporary_folder(), os.getpid()

    def end() -> None:
        if os.getpid() == owner:
            for process in _templates.values():
                process.kill()
                process.wait(END_S)

    atexit.register(end)
    return folder


def _start(path: Path, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a template that listens at a path. Clients can connect at once and wait until it has imported torch."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, path.with_suffix(".log").open("wb") as log:
        listener.bind(str(path))
        listener.listen(4096)
        argv = [*PSRING, "template", str(listener.fileno()), "x" * forked.TITLE_BYTES]
        # OpenBLAS would start a thread per core, and only the thread that calls fork() exists in the forked process.
        own = {**environ, "OPENBLAS_NUM_THREADS": "1", forked.PADDING: "x" * forked.ENVIRON_BYTES}
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=own, pass_fds=[listener.fileno()],
            start_new_session=True, preexec_fn=terminate_with_parent,
        )  # fmt: skip


def serve(listener_fd: int) -> list[str]:
    """Fork a process for each client until SIGTERM; return only in the forked processes: the client's arguments."""
    import bench.rank.preload  # noqa: F401  # imported here: the process that starts a template needs no torch

    gc.collect()
    gc.freeze()  # a later collection would write to the objects' headers and so copy every shared page
    listener = socket.socket(fileno=listener_fd)
    folder = Path(listener.getsockname()).parent
    owner = os.getpid()
    try:
        return _Forker(listener).run()
    finally:
        if os.getpid() == owner and os.getppid() == 1:  # the process that made the folder was killed
            shutil.rmtree(folder, ignore_errors=True)


class _Forker:
    """The loop of a template: it handles requests and signals of clients, and forked processes that end."""

    def __init__(self, listener: socket.socket) -> None:
        self._clients: dict[int, socket.socket] = {}  # the client's connection, by pid of its forked process
        self._listener = listener
        self._wake, wake = socket.socketpair()  # SIGCHLD writes to it, so that select() returns
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
        """Serve clients; return only in a forked process: its arguments."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    arguments = self._accept()
                    if arguments is not None:
                        return arguments
                elif key.fileobj is self._wake:
                    self._reap()
                else:
                    self._forward_signals(key.data)

    def _accept(self) -> list[str] | None:
        """Fork a process for a client; return its arguments there, None in the template."""
        client, _ = self._listener.accept()
        try:
            request, files = forked.receive(client)
        except (OSError, ValueError, EOFError, TypeError):
            client.close()  # it then executes the command itself
            return None
        pid = os.fork()
        if pid == 0:
            self._close_template()
            with socket.socket(fileno=forked.move_above(request["files"], client.detach())) as connection:
                forked.apply(request, files)
                connection.sendall(fork_client.STARTED)
            return list(request["arguments"])
        for file in files:
            os.close(file)
        self._clients[pid] = client
        self._selector.register(client, selectors.EVENT_READ, pid)
        return None

    def _close_template(self) -> None:
        """In a forked process: restore the default signal handlers and close the template's sockets."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self._selector.close()
        for connection in [*self._sockets, *self._clients.values()]:
            connection.close()

    def _forward_signals(self, pid: int) -> None:
        """Send a forked process the signals that its client received; kill it if its client has ended."""
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
        """Send each client the wait status of its process once that has ended."""
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(4096)
        with contextlib.suppress(ChildProcessError):  # no child is left
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
