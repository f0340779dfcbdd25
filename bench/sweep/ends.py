"""Diagnose how a launch ended: status and reason, from its exit code and the files of its ranks.

Ranks leave a log and, if they fail, a failure file each (bench/failures.py). What only the launcher knows, that a rank
was killed or which one exited first, is read from the launcher's own output. A rank that did not get so far as to have
files, because its host or its Python is not there, is known by that output alone.
"""

from __future__ import annotations

import re
import signal
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench import failures
from bench.config import RunConfig
from bench.mpi import JOIN_S
from bench.records import Status
from bench.sweep.launch import Outcome

OUT_OF_MEMORY_SIGNS = ("MemoryError", "out of memory", "can't allocate memory", "Cannot allocate memory")
TIMEOUT_SIGN = "Timeout ("  # faulthandler's, past the deadline of a run
_KILLED = re.compile(
    r"process\s+rank\s+(\d+)\s+with\s+PID\s+\d+\s+on\s+node\s+(\S+)\s+exited\s+on\s+(signal\s+\d+\s+\(.+?\))"
    r"|task (\d+): (Killed|Segmentation fault|Aborted)"
)
# Messages of Open MPI 4 and 5 about a daemon that did not start; the cause is named before them.
_DAEMON_SIGNS = ("ORTE", "PRTE", "A daemon failed to report back")
_KILLED_MPICH = re.compile(r"APPLICATION TERMINATED WITH THE EXIT STRING: (.+)")
_FIRST_TO_EXIT = re.compile(r"Process name: (?:\[\[\d+,\d+\],|\[prterun\S+,)?(\d+)")
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (\S+)', flags=re.MULTILINE)
_STACK = "(most recent call first):"
_PROJECT = str(Path(__file__).parents[2])


def diagnose(outcome: Outcome, config: RunConfig, folder: Path) -> tuple[Status, str]:
    """Return the status of a launch that ended at this run, and the reason in one line, with the rank if known.

    `folder` holds the files of its ranks.
    """
    logs = failures.logs(folder)
    lines = [line for text in (outcome.output, *logs.values()) for line in text.splitlines()]
    if outcome.timed_out or any(line.startswith(TIMEOUT_SIGN) for line in lines):
        late = "the deadline passed (timeout_s)"
        if not failures.have_joined(folder):
            late = f"not all ranks had joined after {min(JOIN_S, config.timeout_s):g} s"
        return "timeout", f"{late}; {where_ranks_are(logs, config.world_size)}"
    found = failures.read(folder)
    reason = _killed(outcome.output, config) or (found[0].describe() if found else _last_words(outcome, config, logs))
    reason = " ".join(reason.split())
    if outcome.oom_kills or any(sign in line for line in lines for sign in OUT_OF_MEMORY_SIGNS):
        return "out_of_memory", reason
    if found and not found[0].type:  # a rank that does not answer: the others' stacks say where they waited for it
        reason += "; " + where_ranks_are(logs, config.world_size)
    return "failed", f"exit code {outcome.returncode}: {reason}"


def where_ranks_are(logs: Mapping[int, str], num_ranks: int) -> str:
    """Name the function in which each rank was when it was ended, from the stacks in the ranks' logs."""
    ranks: defaultdict[str, list[int]] = defaultdict(list)
    for rank in range(num_ranks):
        ranks[_place(logs.get(rank, ""))].append(rank)
    return "; ".join(f"{_names(which)} {place}" for place, which in ranks.items())


def _place(text: str) -> str:
    """The innermost frame of the main thread, which faulthandler prints last; of this project's code if it can be.

    A rank that was stopped and is continued to be ended prints its stacks twice at once: the first lines are whole.
    """
    first, _, again = text.partition(TIMEOUT_SIGN)
    _, found, stack = (first if _STACK in first else again).rpartition(_STACK)
    frames = _FRAME.findall(stack)
    if not found or not frames:
        return "printed no stack (it was stopped, or its host is gone)"
    file, line, function = next((frame for frame in frames if frame[0].startswith(_PROJECT)), frames[0])
    return f"in {function} ({Path(file).name}:{line})"


def _names(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else "ranks " + ", ".join(map(str, ranks))


def _killed(launcher: str, config: RunConfig) -> str:
    """Name the rank that a signal has ended, from the launcher's output; blank if it names none."""
    killed = _KILLED.search(launcher)
    if killed is None:
        return ""
    rank, where = int(killed[1] or killed[4]), f" on {killed[2]}" if killed[2] else ""
    return f"rank {rank} ({config.role(rank)}){where} was ended by {killed[3] or killed[5]}"


def _last_words(outcome: Outcome, config: RunConfig, logs: Mapping[int, str]) -> str:
    """Return why a launch without failure files ended: its signal, else the last line of the rank or launcher."""
    launcher = list(_words(outcome.output))
    ours = [line for line in launcher if "psring: " in line]  # of a rank that had no files yet
    if ours:
        return ours[0]
    if outcome.returncode < 0:
        who = "rank 0" if config.world_size == 1 else "the launcher"
        return f"{who} was ended by {signal.Signals(-outcome.returncode).name}"
    ended = _KILLED_MPICH.search(outcome.output)
    if ended:
        return f"a rank was ended by {ended[1]}; MPICH does not say which"
    first = _FIRST_TO_EXIT.search(outcome.output)
    for rank in [int(first[1])] if first else logs:
        for line in reversed(list(_words(logs.get(rank, "")))):
            return f"rank {rank}: {line}"
    if any(sign in outcome.output for sign in _DAEMON_SIGNS):
        return launcher[0]
    return (launcher or ["no output"])[-1]


def _words(text: str) -> Iterator[str]:
    """Yield lines with text, without the rules that launchers draw around their messages."""
    for line in text.splitlines():
        if line.strip("-=* \t"):
            yield line.strip()
