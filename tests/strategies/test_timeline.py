"""Laws of reading Horovod's timeline: spans nest, ticks have no length, and times are those of the caller's clock."""

from __future__ import annotations

import json

import pytest

from strategies.timeline import spans

SINCE = {"start_time_since_epoch_in_micros": 1_700_000_000_000_000}
START = {"ph": "M", "pid": 0, "name": "process_name", "args": SINCE}
WEIGHT = {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "allreduce.weight"}}
ORDER = {"ph": "M", "pid": 1, "name": "process_sort_index", "args": {"sort_index": 1}}


def event(phase: str, ts: int, name: str = "") -> dict[str, object]:
    return {"ph": phase, "pid": 1, "ts": ts, "name": name}


def test_times_are_those_of_the_callers_clock() -> None:
    events = [
        START, WEIGHT, ORDER, event("E", 5), event("B", 100_000, "outer"), event("B", 200_000, "inner"),
        event("X", 250_000, "1"), event("E", 300_000), event("E", 400_000), event("B", 500_000, "never ended"),
    ]  # fmt: skip
    found = spans(json.dumps(events), epoch_s=1_700_000_000.0 - 50)
    assert [what for what, _, _ in found["allreduce.weight"]] == ["rank 1 is ready", "inner", "outer"]
    times = [time for _, begin, end in found["allreduce.weight"] for time in (begin, end)]
    assert times == pytest.approx([50.25, 50.25, 50.2, 50.3, 50.1, 50.4], abs=1e-6)


def test_a_barrier_that_a_faster_rank_waits_at_already_is_not_of_the_step() -> None:
    barrier = {"ph": "M", "pid": 2, "name": "process_name", "args": {"name": "barrier.noname"}}
    events = [START, WEIGHT, event("B", 1, "ALLREDUCE"), barrier, event("X", 2, "1") | {"pid": 2}, event("E", 3)]
    assert set(spans(json.dumps(events), epoch_s=0.0)) == {"allreduce.weight"}


def test_an_empty_file_says_nothing() -> None:
    assert spans("", epoch_s=0.0) == {}
