"""The last step of a run on all its ranks, as a Chrome trace: for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import records
from bench.clock import PhaseTimer
from strategies.base import Strategy

Span = tuple[str, float, float]  # name, begin and end in seconds of the rank's own clock


@dataclass(frozen=True)
class Lane:
    """What one rank did in its last step, and when it left the barrier that all ranks left together."""

    rank: int
    host: str
    met_at: float
    phases: list[Span]
    communication: list[Span]


def lane(rank: int, clock: PhaseTimer, strategy: Strategy) -> Lane:
    """Return this rank's lane; to be called right after a barrier, whose end makes the clocks of all ranks comparable.

    Communication lasts from the step's first gradient to the end of `synchronize()`. A server's lane is empty.
    """
    met_at = time.perf_counter()
    ends = [end for name, _, end in clock.spans if name == "exposed_communication"]
    communication = [("communication", end - strategy.communication_s, end) for end in ends]
    return Lane(rank, platform.node(), met_at, list(clock.spans), communication if strategy.communication_s else [])


def write(path: Path, lanes: Sequence[Lane]) -> None:
    """Write a trace in one move. Time 0 is the earliest beginning."""
    spans = [(each.rank, each.met_at, span) for each in lanes for span in (*each.phases, *each.communication)]
    start = min((begin - met_at for _, met_at, (_, begin, _) in spans), default=0.0)
    events = [event for each in lanes for event in _events(each, each.met_at + start)]
    records.write_whole(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n")


def _events(lane: Lane, zero: float) -> Iterable[dict[str, object]]:
    """Yield trace events (microseconds): a process per rank, a thread for its phases, one for communication."""
    name = {"name": f"rank {lane.rank} on {lane.host}"}
    yield {"ph": "M", "name": "process_name", "pid": lane.rank, "args": name}
    for thread, spans in enumerate((lane.phases, lane.communication)):
        for what, begin, end in spans:
            times = {"ts": (begin - zero) * 1e6, "dur": (end - begin) * 1e6}
            yield {"ph": "X", "name": what, "pid": lane.rank, "tid": thread, **times}
