"""The last step of a run on all its ranks, as a Chrome trace: for chrome://tracing or ui.perfetto.dev.

The clocks of different ranks meet at a barrier that all leave together, so that a rank which gets its core late after
it stands that much too early. What Horovod says of itself, on rank 0 only, stands on rank 0's own clock by the time of
day that both can read (`strategies.timeline`): to microseconds, but beside other ranks no better than rank 0 itself.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import records
from bench.rank.clock import PhaseTimer
from strategies.base import Strategy
from strategies.timeline import KeepsTimeline, Span

STEPS = 2  # for which a library keeps its timeline: the first absorbs what the start of it costs


@dataclass(frozen=True)
class Lane:
    """What one rank did in its last step, and when it left the barrier that all ranks left together.

    `timeline` is what its library says of each tensor meanwhile, if it keeps one.
    """

    rank: int
    host: str
    met_at: float
    phases: list[Span]
    communication: list[Span]
    timeline: dict[str, list[Span]] = field(default_factory=dict)


def lane(rank: int, clock: PhaseTimer, strategy: Strategy) -> Lane:
    """Return this rank's lane; to be called right after a barrier, whose end makes the clocks of all ranks comparable.

    Communication lasts from the step's first gradient to the end of `synchronize()`. A server's lane is empty.
    """
    met_at = time.perf_counter()
    ends = [end for name, _, end in clock.spans if name == "exposed_communication"]
    communication_s = strategy.observe().communication_s
    communication = [("communication", end - communication_s, end) for end in ends if communication_s]
    timeline = strategy.stop_timeline() if isinstance(strategy, KeepsTimeline) else {}
    return Lane(rank, platform.node(), met_at, list(clock.spans), communication, _within(clock.spans, timeline))


def _within(phases: Sequence[Span], timeline: dict[str, list[Span]]) -> dict[str, list[Span]]:
    """Keep what ended in the step of these phases; another rank, ahead of this one, may have begun it before."""
    begin, end = min((b for _, b, _ in phases), default=0.0), max((e for _, _, e in phases), default=0.0)
    found = {name: [one for one in spans if begin <= one[2] <= end] for name, spans in timeline.items()}
    return {name: spans for name, spans in found.items() if spans}


def write(path: Path, lanes: Sequence[Lane]) -> None:
    """Write a trace in one move. Time 0 is the earliest beginning."""
    spans = [(each.rank, each.met_at, span) for each in lanes for span in (*each.phases, *each.communication)]
    start = min((begin - met_at for _, met_at, (_, begin, _) in spans), default=0.0)
    events = [event for each in lanes for event in _events(each, each.met_at + start)]
    events += [event for each in lanes for event in _timeline_events(each, each.met_at + start, len(lanes))]
    records.write_whole(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n")


def _events(lane: Lane, zero: float) -> Iterator[dict[str, object]]:
    """Yield trace events (microseconds): a process per rank, a thread for its phases, one for communication."""
    yield _name("process", f"rank {lane.rank} on {lane.host}", lane.rank)
    for thread, spans in enumerate((lane.phases, lane.communication)):
        yield from _complete(spans, zero, lane.rank, thread)


def _timeline_events(lane: Lane, zero: float, pid: int) -> Iterator[dict[str, object]]:
    """Yield what Horovod said on this rank: a process of its own, a thread per tensor."""
    if lane.timeline:
        yield _name("process", f"Horovod (rank {lane.rank})", pid)
    for thread, (tensor, spans) in enumerate(lane.timeline.items()):
        yield _name("thread", tensor, pid, thread)
        yield from _complete(spans, zero, pid, thread)


def _name(what: str, name: str, pid: int, thread: int = 0) -> dict[str, object]:
    return {"ph": "M", "name": f"{what}_name", "pid": pid, "tid": thread, "args": {"name": name}}


def _complete(spans: Iterable[Span], zero: float, pid: int, thread: int) -> Iterator[dict[str, object]]:
    for what, begin, end in spans:
        times = {"ts": (begin - zero) * 1e6, "dur": (end - begin) * 1e6}
        yield {"ph": "X", "name": what, "pid": pid, "tid": thread, **times}
