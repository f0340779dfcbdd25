"""Laws of ends: each has one name, and one line that says which rank and why, whatever launcher printed it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench import failures
from bench.config import RunConfig
from bench.failures import Failure
from bench.sweep.ends import diagnose, where_ranks_are
from bench.sweep.launch import Outcome
from tests.support.processes import run_command

THREE = RunConfig(strategy="independent", num_workers=3)
RULE = "-" * 74 + "\n"
MPIRUN_KILLED = (
    f"{RULE}Primary job  terminated normally, but 1 process returned\na non-zero exit code.\n{RULE}"
    f"{RULE}mpirun noticed that process rank 1 with PID 0 on node n1 exited on signal 9 (Killed).\n{RULE}"
)
MPIRUN_EXIT = (
    f"{RULE}mpirun detected that one or more processes exited with non-zero status. The first to do so was:\n\n"
    f"  Process name: [[507,1],1]\n  Exit code:    3\n{RULE}"
)
MPIRUN_5_KILLED = (
    f"{RULE}prterun noticed that process rank 1 with PID 14365 on node n1 exited on\nsignal 9 (Killed).\n{RULE}"
)
MPIRUN_5_EXIT = (
    f"{RULE}prterun detected that one or more processes exited with non-zero status,\nthus causing the job to be "
    f"terminated. The first process to do so was:\n\n   Process name: [prterun-n0-14377@1,1]\n   Exit code:    3\n"
)
MPICH_KILLED = (
    "=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   EXIT CODE: 9\n"
    "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)\nPlease see the FAQ page\n"
)
NO_HOST = f"ssh: Could not resolve hostname n9: Name or service not known\n{RULE}ORTE was unable to start\n{RULE}"
NO_HOST_5 = (
    f"ssh: Could not resolve hostname n9: Name or service not known\n{RULE}"
    "A daemon failed to report back after being spawned. This could\nbe due to several factors\n\n"
    "  Remote host:   n9\n\nany firewall (e.g., iptables) has been disabled and\ntry again.\n" + RULE
)
STACK = 'Thread 0x1 (most recent call first):\n  File "/x/a.py", line 11 in wait\n'
LATE = "Timeout (0:00:02)!\n" + STACK


def failed(rank: int, kind: str, message: str) -> Failure:
    return Failure(rank, "worker", f"n{rank}", kind, message)


@pytest.mark.parametrize(
    ("outcome", "left", "status", "reason"),
    [
        (
            Outcome(1, False, ""),
            [failed(1, "MemoryError", ""), {1: "MemoryError"}],
            "out_of_memory",
            "rank 1 (worker) on n1",
        ),
        (Outcome(1, False, "torch.OutOfMemoryError: CUDA out of memory"), [], "out_of_memory", "CUDA"),
        (
            Outcome(137, False, MPIRUN_KILLED, oom_kills=1),
            [],
            "out_of_memory",
            "rank 1 (worker) on n1 was ended by signal 9",
        ),
        (Outcome(-15, True, ""), [], "timeout", "ranks 0, 1, 2 printed no stack"),
        (
            Outcome(1, False, ""),
            [{0: LATE, 1: LATE}],
            "timeout",
            "ranks 0, 1 in wait (a.py:11); rank 2 printed no stack",
        ),
        (Outcome(137, False, MPIRUN_KILLED), [], "failed", "rank 1 (worker) on n1 was ended by signal 9 (Killed)"),
        (
            Outcome(3, False, MPIRUN_EXIT),
            [{0: "all is well here\n", 1: "Traceback\nKeyError: 'x'\n"}],
            "failed",
            "exit code 3: rank 1: KeyError: 'x'",
        ),
        (Outcome(137, False, MPIRUN_5_KILLED), [], "failed", "rank 1 (worker) on n1 was ended by signal 9 (Killed)"),
        (
            Outcome(3, False, MPIRUN_5_EXIT),
            [{0: "all is well here\n", 1: "Traceback\nKeyError: 'x'\n"}],
            "failed",
            "exit code 3: rank 1: KeyError: 'x'",
        ),
        (Outcome(9, False, MPICH_KILLED), [], "failed", "ended by Killed (signal 9); MPICH does not say which"),
        (Outcome(1, False, "srun: error: s0: task 2: Killed\n"), [], "failed", "rank 2 (worker) was ended by Killed"),
        (Outcome(255, False, NO_HOST), [], "failed", "Could not resolve hostname n9"),
        (Outcome(255, False, NO_HOST_5), [], "failed", "Could not resolve hostname n9"),
        (
            Outcome(1, False, RULE),
            [failed(2, "ValueError", "no\nnever")],
            "failed",
            "rank 2 (worker) on n2 failed: ValueError: no never",
        ),
        (Outcome(2, False, RULE), [failed(0, "BadInput", "no file x")], "failed", "exit code 2: no file x"),
        (Outcome(1, False, "psring: boom\nTraceback\nRuntimeError: Horovod"), [], "failed", "psring: boom"),
        (
            Outcome(1, False, ""),
            [failed(0, "", "rank 2 (server) on n2 stopped responding"), {0: STACK, 1: STACK}],
            "failed",
            "rank 2 (server) on n2 stopped responding; ranks 0, 1 in wait (a.py:11); rank 2 printed no stack",
        ),
        (Outcome(-9, False, "a warning\n"), [], "failed", "the launcher was ended by SIGKILL"),
        (Outcome(1, False, ""), [], "failed", "no output"),
    ],
)
def test_every_end_has_its_name_and_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, left: list[Any], status: str, reason: str
) -> None:
    monkeypatch.setattr(failures, "_folder", tmp_path)
    for each in left:
        if isinstance(each, Failure):
            failures.keep(each)
        else:
            for rank, text in each.items():
                (tmp_path / f"rank-{rank}.log").write_text(text)
    found, line = diagnose(outcome, THREE, tmp_path)
    assert found == status
    assert reason in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("joined", "reason"),
    [(True, "the deadline passed (timeout_s); "), (False, "not all ranks had joined after 60 s; ")],
)
def test_a_rank_that_never_joined_is_told_from_one_that_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined: bool, reason: str
) -> None:
    monkeypatch.setattr(failures, "_folder", tmp_path)
    if joined:
        failures.mark_joined()
    for rank in (0, 1):
        (tmp_path / f"rank-{rank}.log").write_text(LATE)
    found = diagnose(Outcome(1, False, ""), THREE, tmp_path)
    late = "ranks 0, 1 in wait (a.py:11); rank 2 printed no stack (it was stopped, or its host is gone)"
    assert found == ("timeout", reason + late)


def test_the_first_rank_that_fails_is_named_and_by_its_first_failure(tmp_path: Path) -> None:
    for number, failure in enumerate([failed(2, "KeyError", "first"), failed(0, "OSError", "connection lost")]):
        path = tmp_path / f"rank-{failure.rank}.failure"
        path.write_text(json.dumps(asdict(failure)))
        os.utime(path, ns=(number, number))
    (tmp_path / "rank-1.failure").write_text('{"rank": 1, "ro')
    _, line = diagnose(Outcome(1, False, ""), THREE, tmp_path)
    assert line == "exit code 1: rank 2 (worker) on n2 failed: KeyError: first"


def test_what_a_rank_and_its_children_print_goes_to_its_own_log(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from bench import failures;"
        "print('before'); failures.redirect(Path(sys.argv[1]), 12); print('after'); os.system('echo child >&2');"
        "failures.keep(failures.Failure.of(ValueError('x'), 12, 'worker'));"
        "failures.keep(failures.Failure.of(ValueError('y'), 12, 'worker'))"
    )
    ended = run_command([sys.executable, "-c", program, str(tmp_path)])
    assert (ended.stdout, ended.stderr) == ("before\n", "")
    assert sorted(failures.logs(tmp_path)[12].splitlines()) == ["after", "child"]
    (failure,) = failures.read(tmp_path)
    assert (failure.rank, failure.role, failure.type, failure.message) == (12, "worker", "ValueError", "x")
    assert "ValueError: x" in failure.traceback


def test_a_kept_log_has_every_rank_under_its_heading() -> None:
    text = failures.join_logs("no host\n", [(0, "a\nb"), (1, "c\n")])
    assert text == "==> launcher <==\nno host\n\n==> rank 0 <==\na\nb\n\n==> rank 1 <==\nc\n"


def test_a_continued_rank_prints_its_stacks_twice_at_once() -> None:
    first = 'Thread 0x1 (most recent call first):\n  File "/x/s.py", line 115 in serve\n'
    both = "  File Timeout (0:00:20)!\nThread 0x1 (most recent call first):\n"
    late = '  File "/x/cli.py", line 356 in <module>\n'
    assert where_ranks_are({0: first + both + late}, num_ranks=1) == "rank 0 in serve (s.py:115)"


def test_a_lone_rank_that_the_kernel_killed_for_memory_is_named(tmp_path: Path) -> None:
    assert diagnose(Outcome(-9, False, "", oom_kills=1), RunConfig(), tmp_path) == (
        "out_of_memory",
        "rank 0 was ended by SIGKILL",
    )
