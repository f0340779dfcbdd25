"""What `psring run` ends with: every number that the record has, and why one is missing."""

from __future__ import annotations

from dataclasses import replace

from bench import outcome
from bench.ledger import Ledger
from bench.records import PlannedRun, RunRecord
from strategies.volume import Volume
from tests.support.synthetic import make_failure, make_record


def lines(record: RunRecord, **changed: object) -> list[str]:
    assert record.ledger is not None
    ledger = replace(record.ledger, **changed)
    return outcome.describe(PlannedRun(config=record.config), record.model_copy(update={"ledger": ledger})).splitlines()


def test_it_has_speed_phases_bytes_loss_and_gate() -> None:
    record = make_record(strategy="ring_allreduce", num_workers=2, tokens_per_s=1024.0, block_size=64, batch_size=8)
    worker = replace(record.ledger.worker, wire=Volume(1.5e6, 1.5e6, None, None))  # type: ignore[union-attr]
    told = lines(record, worker=worker, bytes_counted_by="inferred", wire_counted_by="sockets")
    assert told[0] == "ring_allreduce 2, fp32, wire fp32, batch 8: ok [loopback]"
    assert told[1] == "  speed   1,024 tokens/s; a step takes 1,000 ms (median), 1,200 ms (95th percentile)"
    assert told[2].startswith(
        "  phases  data 12, forward 198, backward 360, exposed communication 300, optimizer 30 ms"
    )
    size = f"{record.ledger.worker.counted.bytes_sent / 1e3:.4g} kB"  # type: ignore[union-attr, operator]
    assert (
        told[3]
        == f"  bytes   sent by a worker per step: {size} predicted, {size} inferred, 1.5 MB on the wire (sockets)"
    )
    assert told[4] == "  loss    training 5.5000 -> 2.5000; held-out 2.6000"
    assert told[5] == "  gate    equivalence 2e-07 of at most 1e-05"


def test_a_disagreement_and_a_missing_number_are_told() -> None:
    record = make_record(strategy="mpi_ring", num_workers=2)
    told = lines(record, agrees=False, bytes_counted_by="counted", wire_remark="messages passed shared memory")
    assert "counted (DISAGREES)" in told[3]
    assert told[3].endswith("; messages passed shared memory")


def test_sizes_at_which_no_ring_ran_are_named() -> None:
    record = make_record(strategy="ddp", num_workers=4)
    summary = record.summary.model_copy(update={"not_ring_bytes": "64 256"})  # type: ignore[union-attr]
    told = outcome.describe(PlannedRun(config=record.config), record.model_copy(update={"summary": summary}))
    assert "  ring    no ring at messages of 64 256 bytes" in told.splitlines()


def test_a_lone_process_has_no_bytes_and_a_failure_only_its_reason() -> None:
    alone = make_record(strategy="local", num_workers=1)
    told = outcome.describe(PlannedRun(config=alone.config), alone)
    assert "bytes" not in told
    assert Ledger() == alone.ledger
    failed = make_failure("timeout", "no step within 600 s", strategy="ddp", num_workers=2)
    told = outcome.describe(PlannedRun(config=failed.config), failed)
    assert told == "ddp 2, fp32, wire fp32, batch 8: timeout: no step within 600 s"
