"""Horovod's own timeline, read as spans on this process's clock; plain text in, plain values out."""

from __future__ import annotations

import json
from collections import defaultdict

from strategies.base import Span

REDUCED = "allreduce."  # how Horovod's optimizer names the reduction of a parameter's gradient


def spans(text: str, epoch_s: float) -> dict[str, list[Span]]:
    """Return what Horovod did for each gradient, in seconds of `time.perf_counter()`.

    Barriers are left out: a rank that is done already waits at the next one while the recording rank ends its step.
    The file's times are microseconds since a moment whose time of day its first line states. `epoch_s` is the time of
    day less `time.perf_counter()`, read when Horovod began: both are clocks of one machine, so that what is left as an
    error is the microseconds between the two readings and what the time of day was corrected by in between.
    """
    events = json.loads(text or "[]")  # Horovod writes nothing at all where it had nothing to do
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
        elif event["ph"] == "E" and begun[pid]:  # else it began before the recording
            what, begin = begun[pid].pop()
            found[tensors[pid]].append((what, begin, at))
        elif event["ph"] == "X":
            found[tensors[pid]].append((f"rank {event['name']} is ready", at, at))
    return {tensor: said for tensor, said in found.items() if tensor.startswith(REDUCED)}
