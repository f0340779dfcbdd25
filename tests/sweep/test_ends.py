"""Laws of ends: each has one name, and one line that says which rank and why, whatever launcher printed it."""

from __future__ import annotations

import pytest

from bench.config import RunConfig
from bench.sweep.ends import diagnose, streams, where_ranks_are
from bench.sweep.launch import Outcome

THREE = RunConfig(strategy="independent", num_workers=3)
RULE = "-" * 74 + "\n"
MPIRUN_KILLED = (
    f"{RULE}Primary job  terminated normally, but 1 process returned\na non-zero exit code.\n{RULE}"
    f"{RULE}mpirun noticed that process rank 1 with PID 0 on node n1 exited on signal 9 (Killed).\n{RULE}"
)
MPIRUN_EXIT = (
    "[1,0]<stderr>:all is well here\n[1,1]<stderr>:Traceback\n[1,1]<stderr>:KeyError: 'x'\n"
    f"{RULE}mpirun detected that one or more processes exited with non-zero status. The first to do so was:\n\n"
    f"  Process name: [[507,1],1]\n  Exit code:    3\n{RULE}"
)
NO_HOST = f"ssh: Could not resolve hostname n9: Name or service not known\n{RULE}ORTE was unable to start\n{RULE}"
# As mpirun --tag-output really cuts up what faulthandler writes.
STACKS = (
    "[1,0]<stderr>:Timeout (0:00:02)!\n"
    "[1,0]<stderr>:Thread 0x[1,1]<stderr>:Thread 0x[1,0]<stderr>:00007f[1,0]<stderr>: (most recent call first):\n"
    '[1,1]<stderr>:00008e[1,1]<stderr>: (most recent call first):\n[1,0]<stderr>:  File "[1,0]<stderr>:/x/a.py'
    '[1,0]<stderr>:", line [1,0]<stderr>:11[1,0]<stderr>: in [1,0]<stderr>:wait\n'
    '[1,1]<stderr>:  File "/x/a.py", line 11 in wait\n'
)


@pytest.mark.parametrize(
    ("outcome", "status", "reason"),
    [
        (Outcome(1, False, "psring: rank 1 on n1 failed: MemoryError: "), "out_of_memory", "rank 1 on n1"),
        (Outcome(1, False, "torch.OutOfMemoryError: CUDA out of memory"), "out_of_memory", "CUDA"),
        (
            Outcome(137, False, MPIRUN_KILLED, oom_kills=1),
            "out_of_memory",
            "rank 1 (worker) on n1 was ended by signal 9",
        ),
        (Outcome(-15, True, ""), "timeout", "ranks 0, 1, 2 printed no stack"),
        (Outcome(1, False, STACKS), "timeout", "ranks 0, 1 in wait (a.py:11); rank 2 printed no stack"),
        (Outcome(137, False, MPIRUN_KILLED), "failed", "rank 1 (worker) on n1 was ended by signal 9 (Killed)"),
        (Outcome(3, False, MPIRUN_EXIT), "failed", "exit code 3: rank 1: KeyError: 'x'"),
        (Outcome(1, False, "srun: error: s0: task 2: Killed\n"), "failed", "rank 2 (worker) was ended by Killed"),
        (Outcome(255, False, NO_HOST), "failed", "Could not resolve hostname n9"),
        (
            Outcome(1, False, "Traceback\npsring: rank 2 on n1 failed: ValueError: no\n" + RULE),
            "failed",
            "rank 2 on n1",
        ),
        (Outcome(1, False, "[0]<stderr>:psring: boom\nTraceback\nRuntimeError: Horovod"), "failed", "psring: boom"),
        (
            Outcome(1, False, f"{STACKS[33:]}[1,0]<stderr>:psring: rank 2 (server 0) on n2 does not answer any more\n"),
            "failed",
            "rank 2 (server 0) on n2 does not answer any more; ranks 0, 1 in wait (a.py:11); rank 2 printed no stack",
        ),
        (Outcome(-9, False, "[1,0]<stderr>:a warning\n"), "failed", "the launcher was ended by SIGKILL"),
        (Outcome(1, False, ""), "failed", "no output"),
    ],
)
def test_every_end_has_its_name_and_its_line(outcome: Outcome, status: str, reason: str) -> None:
    found, line = diagnose(outcome, THREE)
    assert found == status
    assert reason in line
    assert "\n" not in line


def test_what_ranks_print_is_taken_apart_even_within_a_line() -> None:
    said = streams("[1,0]<stdout>:a[1,12]<stderr>:b\nlauncher\n3: srun\n[7]<stderr>:horovodrun\n")
    assert said == {0: "a", 12: "b\n", None: "launcher\n", 3: "srun\n", 7: "horovodrun\n"}


def test_a_continued_rank_prints_its_stacks_twice_at_once() -> None:
    first = '[1,0]<stderr>:Thread 0x1 (most recent call first):\n[1,0]<stderr>:  File "/x/s.py", line 115 in serve\n'
    both = "[1,0]<stderr>:  File Timeout (0:00:20)!\n[1,0]<stderr>:Thread 0x1 (most recent call first):\n"
    late = '[1,0]<stderr>:  File "/x/cli.py", line 356 in <module>\n'
    assert where_ranks_are(streams(first + both + late), num_ranks=1) == "rank 0 in serve (s.py:115)"


def test_a_lone_rank_has_no_tag() -> None:
    stack = 'Timeout (0:00:03)!\nThread 0x1 (most recent call first):\n  File "/x/b.py", line 5 in work\n'
    assert where_ranks_are(streams(stack), num_ranks=1) == "rank 0 in work (b.py:5)"


def test_a_lone_rank_that_the_kernel_killed_for_memory_is_named() -> None:
    assert diagnose(Outcome(-9, False, "", oom_kills=1), RunConfig()) == (
        "out_of_memory",
        "rank 0 was ended by SIGKILL",
    )
