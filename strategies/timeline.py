"""What a strategy or its library records of its own work; and the reading of Horovod's file."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable

Span = tuple[str, float, float]  # what, begin and end in seconds of `time.perf_counter()`
REDUCED = "allreduce."  # how Horovod's optimizer names the reduction of a parameter's gradient


class KeepsTimeline(ABC):
    """A strategy that can record what it, or its library, does beside the phases of a step."""

    timeline_title = ""  # who does it, for the reader of a trace

    @abstractmethod
    def start_timeline(self) -> None:
        """Begin to record. Collective."""

    @abstractmethod
    def stop_timeline(self) -> dict[str, list[Span]]:
        """Return what was done since then, by tensor or kind of work; nothing on ranks that record nothing. Collective.

        Older spans may be left out, those of the last step not.
        """


class Timeline:
    """The latest spans of each kind of work; records nothing until it is started."""

    def __init__(self, most: int) -> None:
        self._started = False
        self._spans: deque[tuple[str, Span]] = deque(maxlen=most)

    def start(self) -> None:
        """Begin to record."""
        self._started = True

    def add(self, kind: str, what: Callable[[], str], begin: float) -> None:
        """Record a span that ends now; `what` is called only if it is recorded."""
        if self._started:
            self._spans.append((kind, (what(), begin, time.perf_counter())))

    def by_kind(self) -> dict[str, list[Span]]:
        """Return the spans of each kind of work, in order."""
        found = defaultdict[str, list[Span]](list)
        for kind, span in self._spans:
            found[kind].append(span)
        return dict(found)


def spans(text: str, epoch_s: float) -> dict[str, list[Span]]:
    """Return what Horovod did for each gradient, in seconds of `time.perf_counter()`.

    Barriers are left out: a faster rank waits at the next one while the recording rank still ends its step.
    The file's times are microseconds since a time of day that its first event states. `epoch_s` is the time of day less
    `time.perf_counter()`, read when Horovod was initialised. Their error is the microseconds between the two readings,
    and any correction of the time of day since.
    """
    events = json.loads(text or "[]")  # Horovod writes no text if it had nothing to do
    zero = 0.0 if not events else events[0]["args"]["start_time_since_epoch_in_micros"] / 1e6 - epoch_s
    tensors: dict[int, str] = {}
    begun = defaultdict[int, list[tuple[str, float]]](list)
    found = defaultdict[str, list[Span]](list)
    for event in events:
        pid, at = event.get("pid", 0), zero + event.get("ts", 0) / 1e6
        if event["ph"] == "M":
            tensors[pid] = event["args"].get("name", tensors.get(pid, ""))
        elif event["ph"] == "B":
            begun[pid].append((event["name"], at))
        elif event["ph"] == "E" and begun[pid]:  # otherwise it began before the recording
            what, begin = begun[pid].pop()
            found[tensors[pid]].append((what, begin, at))
        elif event["ph"] == "X":
            found[tensors[pid]].append((f"rank {event['name']} is ready", at, at))
    return {tensor: events for tensor, events in found.items() if tensor.startswith(REDUCED)}
