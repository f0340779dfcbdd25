"""Write the last step of all ranks as a Chrome trace, for chrome://tracing or ui.perfetto.dev.

The ranks' clocks are aligned at the end of a barrier; a rank that is scheduled late after it appears too early by that
delay. Horovod's own timeline, of rank 0 only, is aligned to rank 0's clock through the time of day, to microseconds
(`strategies.timeline`). A server's work is shown from the begin of the last step on.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import files
from bench.rank.clock import PhaseTimer
from strategies.base import Strategy
from strategies.timeline import KeepsTimeline, Span

STEPS = 2  # with a library's timeline: the first one absorbs the cost of starting it


@dataclass(frozen=True)
class RankTrace:
    """One rank's spans (name, begin, end; seconds of its own clock) in its last step.

    `barrier_end` is when it left the barrier by which clocks are aligned; `timeline` what `title` (a server, a library)
    did, by kind of work or by tensor.
    """

    rank: int
    host: str
    barrier_end: float
    phases: list[Span]
    communication: list[Span]
    timeline: dict[str, list[Span]] = field(default_factory=dict)
    title: str = ""

    @property
    def begin(self) -> float | None:
        """When its last step began; None for a rank without steps."""
        return min((begin for _, begin, _ in (*self.phases, *self.communication)), default=None)


def collect(rank: int, clock: PhaseTimer, strategy: Strategy) -> RankTrace:
    """Return this rank's trace; to be called right after a barrier.

    Communication lasts from the step's first gradient to the end of `synchronize()`. A dedicated server has no phases.
    """
    barrier_end = time.perf_counter()
    ends = [end for name, _, end in clock.spans if name == "exposed_communication"]
    communication_s = strategy.observe().communication_s
    communication = [("communication", end - communication_s, end) for end in ends if communication_s]
    found = RankTrace(rank, socket.gethostname(), barrier_end, list(clock.spans), communication)
    if not isinstance(strategy, KeepsTimeline):
        return found
    return replace(found, timeline=strategy.stop_timeline(), title=strategy.timeline_title)


def write(path: Path, ranks: Sequence[RankTrace]) -> None:
    """Write all ranks' traces as one file; time 0 is the earliest begin."""
    start = min((each.begin - each.barrier_end for each in ranks if each.begin is not None), default=0.0)
    events = [event for each in ranks if each.phases for event in _events(each, each.barrier_end + start)]
    for each in ranks:
        events += _timeline_events(each, each.barrier_end + start, len(ranks) + each.rank)
    files.write_whole(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n")


def _events(trace: RankTrace, zero: float) -> Iterator[dict[str, object]]:
    """Yield trace events (microseconds): a process per rank, a thread for its phases, one for communication."""
    yield _name("process", f"rank {trace.rank} on {trace.host}", trace.rank)
    for thread, spans in enumerate((trace.phases, trace.communication)):
        yield from _complete(spans, zero, trace.rank, thread)


def _timeline_events(trace: RankTrace, zero: float, pid: int) -> Iterator[dict[str, object]]:
    """Yield what ended after the last step began: a process of its own, a thread for each tensor or kind of work.

    Something that began before, for a rank that was ahead, is shown whole.
    """
    begin = zero if trace.begin is None else trace.begin
    found = {name: [span for span in spans if span[2] >= begin] for name, spans in trace.timeline.items()}
    found = {name: spans for name, spans in found.items() if spans}
    if found:
        yield _name("process", f"{trace.title} (rank {trace.rank} on {trace.host})", pid)
    for thread, (name, spans) in enumerate(found.items()):
        yield _name("thread", name, pid, thread)
        yield from _complete(spans, zero, pid, thread)


def _name(what: str, name: str, pid: int, thread: int = 0) -> dict[str, object]:
    return {"ph": "M", "name": f"{what}_name", "pid": pid, "tid": thread, "args": {"name": name}}


def _complete(spans: Iterable[Span], zero: float, pid: int, thread: int) -> Iterator[dict[str, object]]:
    for what, begin, end in spans:
        times = {"ts": (begin - zero) * 1e6, "dur": (end - begin) * 1e6}
        yield {"ph": "X", "name": what, "pid": pid, "tid": thread, **times}
