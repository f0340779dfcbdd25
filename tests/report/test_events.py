"""Laws of event files: TensorBoard reads back what the raw samples say, of every worker and step."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import records
from bench.records import StepRecord
from bench.report.events import write_events
from strategies.volume import Volume
from tests.support.synthetic import make_failure, make_record


def steps(workers: int, count: int) -> list[StepRecord]:
    times = dict.fromkeys(
        ("step_s", "data_s", "forward_s", "backward_s", "exposed_communication_s", "optimizer_s", "communication_s"),
        0.25,
    )
    return [
        StepRecord(worker=worker, step=step, warmup=step == 0, loss=5.0 - step, moved=Volume.unknown(), **times)
        for worker in range(workers)
        for step in range(count)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ok, failed = make_record(num_workers=2, strategy="ddp"), make_failure("failed", "no")
    for record in (ok, failed):
        records.append(tmp_path, record)
    records.write_steps(tmp_path, ok.run_id, steps(workers=2, count=3))
    return tmp_path


def test_tensorboard_reads_back_every_sample(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # again is not twice
        (written,) = write_events(folder)
        found = EventAccumulator(str(written)).Reload()
        losses = found.Scalars("loss/worker 1")
        assert [(event.step, event.value) for event in losses] == [(0, 5.0), (1, 4.0), (2, 3.0)]
        assert "bytes_sent/worker 0" not in found.Tags()["scalars"]  # blank, never zero
