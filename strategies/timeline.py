"""What a library records of its own work: the interface to start and stop it, and the reading of Horovod's file."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import defaultdict

Span = tuple[str, float, float]  # what, begin and end in seconds of `time.perf_counter()`
REDUCED = "allreduce."  # how Horovod's optimizer names the reduction of a parameter's gradient


class KeepsTimeline(ABC):
    """A strategy whose library can record what it does."""

    @abstractmethod
    def start_timeline(self) -> None:
        """Begin to record. Collective."""

    @abstractmethod
    def stop_timeline(self) -> dict[str, list[Span]]:
        """Return what the library did since then, per tensor; nothing on ranks that record nothing. Collective."""


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
