"""The ranks of a launch: joining them, agreeing on errors, deadlines, and ending all of them."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from bench import failures
from bench.config import AgreedBadInput, BadInput, RunConfig
from bench.failures import Failure
from bench.mpi import RankInfo
from bench.rank.liveness import Heartbeat
from bench.records import PlannedRun
from strategies import catalogue
from strategies.group import Group, MPIGroup, SingleGroup
from strategies.options import Options

FLUSH_S = 0.2
STACKS_S = 5.0
Value = TypeVar("Value")


def join(strategies: Sequence[str], rank_info: RankInfo, options: Options) -> Group:
    """Join the ranks that the launcher started. Collective. BadInput if they are not as many as it said."""
    kinds = [catalogue.find(name) for name in strategies]
    for kind in kinds:
        _import(kind)
    if rank_info.launcher == "horovodrun":
        for kind in kinds:
            if not kind.group_path:
                raise BadInput(f"strategy: horovodrun cannot start {kind.name}; use mpirun")
        group: Group = catalogue.load(kinds[0].group_path)(options)
        rank_info.check_world(group.rank, group.size)
        return group
    if not rank_info.starts_mpi:
        return SingleGroup()
    from mpi4py import MPI

    if not MPI.Is_initialized():  # in a process that a template has forked (preload.py)
        MPI.Init_thread()
    rank_info.check_world(MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
    return MPIGroup(MPI.COMM_WORLD)


def _import(kind: catalogue.Entry) -> None:
    """Import a strategy's library before ranks wait for each other; BadInput without it."""
    try:
        catalogue.load(kind.path)
    except ImportError as error:
        raise BadInput(f"strategy: {kind.name} cannot be imported ({error}); install it: scripts/setup.sh") from None


def agree(group: Group, planned: Sequence[PlannedRun], tracing: bool) -> None:
    """Raise BadInput on every rank if they were given different runs or flags. Collective."""
    given = [{"trace": tracing, "number of runs": len(planned)}, *(run.config.model_dump() for run in planned)]
    raise_together(group, _first_difference(group.gather(given)))


def _first_difference(given: list[list[dict[str, object]]]) -> str | None:
    for rank, theirs in enumerate(given):
        for ours, other in zip(given[0], theirs, strict=False):  # the first entry says how many there are
            for name, one in ours.items():
                if one != other[name]:
                    return f"{name}: rank 0 was given {one!r}, rank {rank} {other[name]!r}; start every rank alike"
    return None


def raise_together(group: Group, problem: str | None) -> None:
    """Raise rank 0's `problem` as BadInput on every rank, if it has one. Collective."""
    problem = group.broadcast(problem)
    if problem:
        raise AgreedBadInput(problem)


def agreed(group: Group, act: Callable[[], Value]) -> Value:
    """Return the value of `act`; if it raises BadInput on any rank, raise that on all ranks. Collective."""
    value, problem = None, None
    try:
        value = act()
    except BadInput as error:
        problem = str(error)
    problems = [f"{text} (rank {rank})" if rank else text for rank, text in enumerate(group.gather(problem)) if text]
    raise_together(group, problems[0] if problems else None)
    return value  # type: ignore[return-value]  # set, or raised


@contextmanager
def monitored(group: Group, rank_info: RankInfo, config: Callable[[], RunConfig]) -> Iterator[None]:
    """During a block, end the launch if a thread of a rank fails or a rank stops answering. Collective."""

    def failed(arguments: threading.ExceptHookArgs) -> None:
        end_all_ranks(rank_info, config(), arguments.exc_value or RuntimeError("a thread failed"))

    def silent(rank: int, host: str) -> None:
        faulthandler.dump_traceback()  # shows where this rank waits for the other one
        message = f"rank {rank} ({config().role(rank)}) on {host} stopped responding"
        role = config().role(rank_info.rank)
        _end(rank_info, Failure(rank_info.rank, role, socket.gethostname(), "", message))

    threading.excepthook = failed
    heartbeat = Heartbeat(group, silent) if group.size > 1 else None
    try:
        yield
    finally:
        threading.excepthook = threading.__excepthook__
        if heartbeat:
            heartbeat.stop()


def set_deadline(timeout_s: float) -> None:
    """At the deadline, print the stacks of all threads, also inside C calls; end this rank STACKS_S later.

    The launcher ends all ranks when the first one ends: in between, all print their stacks.
    """
    faulthandler.register(signal.SIGALRM, chain=False)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    faulthandler.dump_traceback_later(timeout_s + STACKS_S, exit=True)


def clear_deadline() -> None:
    """Cancel the deadline."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()


def end_all_ranks(rank_info: RankInfo, config: RunConfig, error: BaseException) -> NoReturn:
    """Record which rank failed and why, then end the whole launch, so that no rank waits for this one."""
    _end(rank_info, Failure.of(error, rank_info.rank, config.role(rank_info.rank)))


def _end(rank_info: RankInfo, failure: Failure) -> NoReturn:
    failures.keep(failure)
    with contextlib.suppress(OSError):  # the disk is full
        print(f"{failure.traceback}psring: {failure.describe()}", file=sys.stderr, flush=True)
    if rank_info.starts_mpi:
        from mpi4py import MPI

        time.sleep(FLUSH_S)  # so that the line above is forwarded first
        MPI.COMM_WORLD.Abort(1)
    os._exit(1)
