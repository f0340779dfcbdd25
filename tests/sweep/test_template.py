"""Laws of forked processes: each is as its client in all that can be seen, and ends with it and as it."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from bench.fork_client import NAMESPACES
from bench.sweep import template
from tests.support.processes import AT_FIRST, EXECUTED, PSRING, gone, make_environ, run_command

ENDLESS = ["run", "--steps", "1000000", "--n-layer", "1", "--data", "synthetic", "--num-threads", "1"]
ENDS = ["run", "--steps", "1", "--n-layer", "1", "--data", "synthetic", "--eval-batches", "0"]


STREAMS = (0, 1, 2)


class Forked:
    """A client, and the process that the session's template has forked for it."""

    def __init__(self, prefix: list[str] | None = None, **options: object) -> None:
        self.marker = f"PSRING_FORKED_{os.getpid()}_{time.monotonic_ns()}"
        environ = make_environ(**{self.marker: "1"})
        argv = [*(prefix or []), *PSRING, *ENDLESS]
        self.client = psutil.Popen(argv, env=environ, stdout=subprocess.DEVNULL, **options)
        self.rank = self._find()
        assert self.rank.pid != self.client.pid, "the command was executed"
        while not forwards_signals(self.client):
            time.sleep(0.01)

    def _find(self) -> psutil.Process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for process in psutil.process_iter():
                try:
                    if process.cmdline()[: len(EXECUTED)] == EXECUTED and self.marker in process.environ():
                        return process
                except psutil.Error:
                    continue
            time.sleep(0.05)
        raise AssertionError("no process was forked")

    def end(self) -> int:
        """Wait until both are gone; return how the client ended."""
        code = self.client.wait(30)
        assert gone(f"{self.marker}=1")
        return code


def forwards_signals(client: psutil.Process) -> bool:
    """Whether a client has set its signal handlers; a signal that comes earlier ends it."""
    status = Path(f"/proc/{client.pid}/status").read_text().splitlines()
    (caught,) = (int(line.split()[1], 16) for line in status if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.fixture
def forked() -> Iterator[Callable[..., Forked]]:
    started: list[Forked] = []

    def start(*arguments: object, **options: object) -> Forked:
        started.append(Forked(*arguments, **options))
        return started[-1]

    yield start
    for each in started:
        if each.client.is_running():
            each.client.kill()
        each.end()


def standing(process: psutil.Process, files: Sequence[int] = STREAMS) -> dict[str, object]:
    """What the kernel says of a process that a command may depend on, its open `files` among it."""
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {
        "environ": process.environ(),
        "folder": process.cwd(),
        "files": [os.readlink(path) for number in files if (path := Path(f"/proc/{process.pid}/fd/{number}")).exists()],
        "namespaces": [os.readlink(f"/proc/{process.pid}/ns/{name}") for name in (*NAMESPACES, "user", "pid")],
        "rights": [line for line in status if line.startswith(("Umask", "Uid", "Gid", "Groups", "Cap"))],
        "nice": process.nice(),
        "cores": process.cpu_affinity(),
        "limits": Path(f"/proc/{process.pid}/limits").read_text(),
        "arguments": process.cmdline()[-len(ENDLESS) :],
    }


def test_a_forked_process_is_as_its_client(forked: Callable[..., Forked], tmp_path: Path) -> None:
    def change() -> None:
        os.umask(0o027)
        os.nice(3)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        resource.setrlimit(resource.RLIMIT_NOFILE, (500, 1000))

    with (tmp_path / "in").open("w+") as file:
        # A launcher may give its ranks more than the standard streams. The number must be free here: what is open
        # under it belongs to whatever this process has run before.
        given = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 100)
        pair = forked(cwd=tmp_path, preexec_fn=change, stdin=file, pass_fds=[given])
        os.close(given)
    assert pair.rank.ppid() != pair.client.pid
    mine, its = (standing(process, (*STREAMS, given)) for process in (pair.rank, pair.client))
    mine["arguments"] = [word for word in pair.rank.cmdline() if word][-len(ENDLESS) :]
    assert mine == its
    assert its["folder"] == str(tmp_path)
    assert its["files"][-1] == str(tmp_path / "in")  # type: ignore[index]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root")
def test_a_forked_process_enters_its_clients_namespaces(forked: Callable[..., Forked]) -> None:
    pair = forked(["unshare", "--net", "--uts", "--mount", "--ipc"])
    assert standing(pair.rank)["namespaces"] == standing(pair.client)["namespaces"]
    assert os.readlink("/proc/self/ns/net") not in standing(pair.rank)["namespaces"]  # type: ignore[operator]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_a_forked_process_and_its_client_ends_as_it(
    forked: Callable[..., Forked], sign: signal.Signals
) -> None:
    pair = forked(stderr=subprocess.DEVNULL)
    (pair.rank if sign == signal.SIGKILL else pair.client).send_signal(sign)
    assert pair.end() == (130 if sign == signal.SIGINT else -sign)


def test_a_forked_process_dies_with_its_client(forked: Callable[..., Forked]) -> None:
    pair = forked()
    pair.client.kill()
    assert pair.end() == -signal.SIGKILL


def test_exit_code_and_output_are_those_of_the_command() -> None:
    ended = run_command([*PSRING, "rum"])
    assert (ended.returncode, ended.stdout, "invalid choice: 'rum'" in ended.stderr) == (2, "", True)


def test_a_command_that_no_template_fits_is_executed(tmp_path: Path) -> None:
    ended = run_command([*PSRING, *ENDS, "--out", str(tmp_path / "out")], OMP_NUM_THREADS="1")
    assert ended.returncode == 0, ended.stderr
    assert '"rank_start":"exec"' in (tmp_path / "out/runs.jsonl").read_text()
    assert run_command([*PSRING, "--version"], PSRING_TEMPLATE="/nowhere").returncode == 0


def test_a_run_says_that_it_was_forked(tmp_path: Path) -> None:
    ended = run_command([*PSRING, *ENDS, "--out", str(tmp_path / "out")])
    assert ended.returncode == 0, ended.stderr
    assert '"rank_start":"template"' in (tmp_path / "out/runs.jsonl").read_text()


def test_a_template_that_cannot_start_is_named_and_commands_are_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template, "_templates", dict(template._templates))
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py/__init__.py").write_text("raise ImportError('no MPI here')")
    environ = {**AT_FIRST, "PYTHONPATH": f"{tmp_path}:{AT_FIRST['PYTHONPATH']}"}
    environ |= template.environment(environ)
    ended = run_command([*PSRING, "--version"], **environ)
    assert ended.returncode == 0, ended.stderr
    (error,) = template.errors()
    assert "no MPI here" in error


def test_where_no_socket_can_be_made_ranks_are_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(template, "_start", refuse)
    monkeypatch.setattr(template, "_start_errors", [])
    assert template.environment({**AT_FIRST, "LANG": "never"}) == {}
    assert template.errors() == ["ranks are not forked: [Errno 28] No space left on device"]


def test_templates_can_be_turned_off() -> None:
    assert template.environment({**AT_FIRST, template.DISABLED: "1"}) == {}


def test_a_client_that_ignores_a_signal_as_under_nohup_still_runs() -> None:
    ended = run_command(["nohup", *PSRING, "run", "--help"])
    assert ended.returncode == 0, ended.stderr
