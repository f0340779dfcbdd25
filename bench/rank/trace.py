"""Write the last step of all ranks as a Chrome trace, for chrome://tracing or ui.perfetto.dev.

The ranks' clocks are aligned at the end of a barrier; a rank that is scheduled late after it appears too early by that
delay. Horovod's own timeline, of rank 0 only, is aligned to rank 0's clock through the time of day, to microseconds
(`strategies.timeline`).
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import files
from bench.rank.clock import PhaseTimer
from strategies.base import Strategy
from strategies.timeline import KeepsTimeline, Span

STEPS = 2  # with a library's timeline: the first one absorbs the cost of starting it


@dataclass(frozen=True)
class RankTrace:
    """One rank's spans (name, begin, end; seconds of its own clock) in its last step.

    `barrier_end` is when it left the barrier by which clocks are aligned; `timeline` its library's spans by tensor.
    """

    rank: int
    host: str
    barrier_end: float
    phases: list[Span]
    communication: list[Span]
    timeline: dict[str, list[Span]] = field(default_factory=dict)


def collect(rank: int, clock: PhaseTimer, strategy: Strategy) -> RankTrace:
    """Return this rank's trace; to be called right after a barrier.

    Communication lasts from the step's first gradient to the end of `synchronize()`. A server's trace is empty.
    """
    barrier_end = time.perf_counter()
    ends = [end for name, _, end in clock.spans if name == "exposed_communication"]
    communication_s = strategy.observe().communication_s
    communication = [("communication", end - communication_s, end) for end in ends if communication_s]
    timeline = strategy.stop_timeline() if isinstance(strategy, KeepsTimeline) else {}
    return RankTrace(
        rank, socket.gethostname(), barrier_end, list(clock.spans), communication, _within(clock.spans, timeline)
    )


def _within(phases: Sequence[Span], timeline: dict[str, list[Span]]) -> dict[str, list[Span]]:
    """Keep the spans that ended within these phases; a rank that is ahead may have begun them earlier."""
    begin, end = min((b for _, b, _ in phases), default=0.0), max((e for _, _, e in phases), default=0.0)
    found = {name: [one for one in spans if begin <= one[2] <= end] for name, spans in timeline.items()}
    return {name: spans for name, spans in found.items() if spans}


def write(path: Path, ranks: Sequence[RankTrace]) -> None:
    """Write all ranks' traces as one file; time 0 is the earliest begin."""
    spans = [(each.rank, each.barrier_end, span) for each in ranks for span in (*each.phases, *each.communication)]
    start = min((begin - barrier_end for _, barrier_end, (_, begin, _) in spans), default=0.0)
    events = [event for each in ranks for event in _events(each, each.barrier_end + start)]
    events += [event for each in ranks for event in _timeline_events(each, each.barrier_end + start, len(ranks))]
    files.write_whole(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n")


def _events(trace: RankTrace, zero: float) -> Iterator[dict[str, object]]:
    """Yield trace events (microseconds): a process per rank, a thread for its phases, one for communication."""
    yield _name("process", f"rank {trace.rank} on {trace.host}", trace.rank)
    for thread, spans in enumerate((trace.phases, trace.communication)):
        yield from _complete(spans, zero, trace.rank, thread)


def _timeline_events(trace: RankTrace, zero: float, pid: int) -> Iterator[dict[str, object]]:
    """Yield the events of the library's timeline: a process of its own, a thread per tensor."""
    if trace.timeline:
        yield _name("process", f"Horovod (rank {trace.rank})", pid)
    for thread, (tensor, spans) in enumerate(trace.timeline.items()):
        yield _name("thread", tensor, pid, thread)
        yield from _complete(spans, zero, pid, thread)


def _name(what: str, name: str, pid: int, thread: int = 0) -> dict[str, object]:
    return {"ph": "M", "name": f"{what}_name", "pid": pid, "tid": thread, "args": {"name": name}}


def _complete(spans: Iterable[Span], zero: float, pid: int, thread: int) -> Iterator[dict[str, object]]:
    for what, begin, end in spans:
        times = {"ts": (begin - zero) * 1e6, "dur": (end - begin) * 1e6}
        yield {"ph": "X", "name": what, "pid": pid, "tid": thread, **times}
