"""How a launch ended: from its exit code and what its ranks printed to a status and one line that says why."""

from __future__ import annotations

import re
import signal
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.config import RunConfig
from bench.records import Status
from bench.sweep.launch import Outcome

OUT_OF_MEMORY_SIGNS = ("MemoryError", "out of memory", "can't allocate memory", "Cannot allocate memory")
SILENCE_SIGN = "does not answer any more"
# What mpirun (--tag-output), horovodrun and srun (--label) put before a rank's output, in the middle of lines too.
_TAG = re.compile(r"\[(?:\d+,)?(\d+)\]<std(?:out|err)>:|^(\d+): ", flags=re.MULTILINE)
_KILLED = re.compile(
    r"process rank (\d+) with PID \d+ on node\s+(\S+)\s+exited on (signal \d+ \(.+?\))"
    r"|task (\d+): (Killed|Segmentation fault|Aborted)"
)
_FIRST_TO_EXIT = re.compile(r"Process name: (?:\[\[\d+,\d+\],)?(\d+)")
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (\S+)', flags=re.MULTILINE)
_STACK = "(most recent call first):"
_PROJECT = str(Path(__file__).parents[2])


def diagnose(outcome: Outcome, config: RunConfig) -> tuple[Status, str]:
    """Name how a launch ended that was at this run, and the line that says why, with its rank where one is known."""
    num_ranks = config.world_size
    said = streams(outcome.output)
    lines = [line for text in said.values() for line in text.splitlines()]
    if outcome.timed_out or any(line.startswith("Timeout (") for line in lines):
        return "timeout", "the deadline passed (timeout_s); " + where_ranks_are(said, num_ranks)
    reason = _reason(said, config, "" if outcome.returncode >= 0 else _signalled(-outcome.returncode, num_ranks))
    if outcome.oom_kills or any(sign in line for line in lines for sign in OUT_OF_MEMORY_SIGNS):
        return "out_of_memory", reason
    if SILENCE_SIGN in reason:
        reason += "; " + where_ranks_are(said, num_ranks)
    return "failed", f"exit code {outcome.returncode}: {reason}"


def streams(output: str) -> dict[int | None, str]:
    """Take a launcher's output apart: what each rank printed, and what came from the launcher itself (None)."""
    texts: defaultdict[int | None, str] = defaultdict(str)
    for line in output.splitlines(keepends=True):
        parts = _TAG.split(line)  # text, rank, rank, text, rank, rank, text, ...
        if parts[0]:
            texts[None] += parts[0]
        for tagged, labelled, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            texts[int(tagged or labelled)] += text
    return dict(texts)


def where_ranks_are(said: dict[int | None, str], num_ranks: int) -> str:
    """Say from the stacks that ranks printed at their deadline what each of them was doing."""
    alone = said.get(None, "") if num_ranks == 1 else ""
    ranks: defaultdict[str, list[int]] = defaultdict(list)
    for rank in range(num_ranks):
        ranks[_place(said.get(rank, alone))].append(rank)
    return "; ".join(f"{_names(which)} {place}" for place, which in ranks.items())


def _place(text: str) -> str:
    """The innermost frame of the main thread, which faulthandler prints last; of this project's code if it can be.

    A rank that was stopped and is continued to be ended prints its stacks twice at once: the first lines are whole.
    """
    first, _, again = text.partition("Timeout (")
    _, found, stack = (first if _STACK in first else again).rpartition(_STACK)
    frames = _FRAME.findall(stack)
    if not found or not frames:
        return "printed no stack (it was stopped, or its host is gone)"
    file, line, function = next((frame for frame in frames if frame[0].startswith(_PROJECT)), frames[0])
    return f"in {function} ({Path(file).name}:{line})"


def _names(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else "ranks " + ", ".join(map(str, ranks))


def _signalled(number: int, num_ranks: int) -> str:
    return f"{'rank 0' if num_ranks == 1 else 'the launcher'} was ended by {signal.Signals(number).name}"


def _reason(said: dict[int | None, str], config: RunConfig, signalled: str) -> str:
    """The line that names the cause: a rank's signal, our own words, the last words of the rank that ended first."""
    launcher = said.get(None, "")
    killed = _KILLED.search(launcher)
    if killed:
        rank, where = int(killed[1] or killed[4]), f" on {killed[2]}" if killed[2] else ""
        return f"rank {rank} ({config.role(rank)}){where} was ended by {killed[3] or killed[5]}"
    ours = [line for text in said.values() for line in text.splitlines() if "psring: " in line]
    if ours:
        return ours[0].strip()
    if signalled:
        return signalled
    first = _FIRST_TO_EXIT.search(launcher)
    for rank in [int(first[1])] if first else sorted(rank for rank in said if rank is not None):
        for line in reversed(list(_words(said.get(rank, "")))):
            return f"rank {rank}: {line}"
    lines = list(_words(launcher))
    return (lines[:1] if "ORTE" in launcher else lines[-1:] or ["no output"])[0]


def _words(text: str) -> Iterator[str]:
    """Lines with something in them; the rules that launchers draw around their messages left out."""
    for line in text.splitlines():
        if line.strip("-=* \t"):
            yield line.strip()
