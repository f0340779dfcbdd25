"""Real ranks under mpirun and horovodrun: each trains the one-process model and counts what was predicted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import records
from bench.ledger import padding_bytes
from bench.records import RunRecord

pytestmark = pytest.mark.launcher

SHORT = ["--steps", 4, "--warmup-steps", 2, "--batch-size", 4, "--block-size", 32, "--check-equivalence"]
SGD = ["--optimizer", "sgd", "--learning-rate", 0.1]
SERVERS_1 = ["--strategy", "parameter_server", "--num-servers", 1]
SERVERS_2 = ["--strategy", "parameter_server", "--num-servers", 2]
COLOCATED = ["--strategy", "parameter_server", "--placement", "colocated"]
MIXED_1 = ["--strategy", "parameter_server", "--placement", "mixed", "--num-servers", 1]
PRIORITY = ["--schedule", "priority", "--window-bytes", 100_000]
RING = ["--strategy", "ring_allreduce"]
MPI_RING = ["--strategy", "mpi_ring"]
DDP = ["--strategy", "ddp"]
ACCUMULATE_AND_CLIP = ["--gradient-accumulation", 2, "--clip-norm", 0.3]


def only_record(out: Path) -> RunRecord:
    (record,) = records.read(out)
    assert (out / "steps" / f"{record.run_id}.csv").exists()
    assert (out / "environment.json").exists()
    return record


def assert_true_run(record: RunRecord) -> None:
    """What every run must keep: the reference's model, and every byte accounted for."""
    assert record.status == "ok"
    assert record.summary is not None
    assert record.summary.equivalence_error is not None
    assert record.summary.equivalence_bound is not None
    assert record.summary.equivalence_error <= record.summary.equivalence_bound
    assert record.ledger is not None
    assert record.ledger.ledger_agrees
    values = record.ledger.model_dump()
    for direction in ("sent", "received"):
        for role in ("worker", "server") if record.config.num_servers else ("worker",):
            counted = values[f"bytes_{direction}_per_{role}_per_step"]
            predicted = values[f"bytes_{direction}_per_{role}_per_step_predicted"]
            assert abs(counted - predicted) <= padding_bytes(record.config)
    servers_sent = (record.ledger.bytes_sent_per_server_per_step or 0) * record.config.num_servers
    workers_received = (record.ledger.bytes_received_per_worker_per_step or 0) * record.config.num_workers
    if record.config.num_servers == 1 and record.config.placement == "dedicated":
        assert servers_sent == workers_received
    if record.config.strategy == "parameter_server":
        assert record.summary.shard_imbalance is not None
        assert 1 <= record.summary.shard_imbalance <= 1.01


@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        (2, [*SERVERS_1, *SGD]),
        (3, [*SERVERS_1, *SGD, *ACCUMULATE_AND_CLIP]),
        (3, [*SERVERS_1, "--wire-dtype", "bf16", "--precision", "fp16"]),
        (4, [*SERVERS_2]),
        (5, [*SERVERS_2, *ACCUMULATE_AND_CLIP, "--wire-dtype", "fp16", "--chunk-bytes", 40_000]),
        (2, [*COLOCATED, *SGD]),
        (3, [*COLOCATED, *ACCUMULATE_AND_CLIP, *PRIORITY]),
        (4, [*MIXED_1, *SGD, "--chunk-bytes", 10_000]),
        (4, [*SERVERS_1, *SGD, *PRIORITY, "--consistency", "ssp"]),
        (5, [*COLOCATED, "--wire-dtype", "bf16", "--precision", "fp16"]),
        (2, [*RING, *SGD, *ACCUMULATE_AND_CLIP]),
        (3, [*RING, "--wire-dtype", "fp16", "--precision", "fp16"]),
        (4, [*RING, *SGD]),
        (5, [*RING]),
        (2, [*MPI_RING, *SGD, *ACCUMULATE_AND_CLIP, "--segment-bytes", 2000]),
        (3, [*MPI_RING, "--wire-dtype", "fp16", "--precision", "fp16"]),
        (4, [*MPI_RING, *SGD, *ACCUMULATE_AND_CLIP, "--wire-dtype", "bf16"]),
        (5, [*MPI_RING, *SGD]),
        (2, [*DDP, *SGD, "--precision", "bf16"]),
        (3, [*DDP, *ACCUMULATE_AND_CLIP, "--wire-dtype", "bf16"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else str(value),
)
def test_under_mpirun(mpirun: Callable[..., object], tmp_path: Path, ranks: int, flags: list[object]) -> None:
    ended = mpirun(ranks, "run", *SHORT, *flags, "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    record = only_record(tmp_path / "out")
    assert_true_run(record)
    assert record.config.world_size == ranks
    assert "loopback" in record.labels
    if "parameter_server" not in flags:
        assert record.summary.allreduce_algorithm == ("ring" if ranks > 2 else "any")


@pytest.mark.parametrize("flags", [SERVERS_1, RING], ids=["servers", "ring"])
def test_ranks_that_sleep_send_what_they_would_and_have_no_loss(
    mpirun: Callable[..., object], tmp_path: Path, flags: list[object]
) -> None:
    asleep = [
        "--compute",
        "emulated",
        "--emulated-forward-s",
        0.01,
        "--emulated-backward-s",
        0.02,
        "--speed-factor",
        "1=0.5",
    ]
    ended = mpirun(3, "run", *SHORT[:-1], *asleep, *flags, "--gradient-accumulation", 2, "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    record = only_record(tmp_path / "out")
    assert record.status == "ok"
    assert record.summary is not None
    assert (record.summary.first_loss, record.summary.final_loss, record.summary.held_out_loss) == (None, None, None)
    assert record.summary.sleep_overshoot_s_p95 is not None
    assert record.ledger is not None
    assert record.ledger.ledger_agrees
    assert "emulated_compute" in record.labels


@pytest.mark.parametrize("ranks", [2, 3])
def test_under_horovodrun(horovodrun: Callable[..., object], tmp_path: Path, ranks: int) -> None:
    ended = horovodrun(ranks, "run", *SHORT, *RING, *SGD, "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    record = only_record(tmp_path / "out")
    assert_true_run(record)
    assert record.config.launcher == "horovodrun"
    assert record.summary.allreduce_algorithm == ("ring" if ranks > 2 else "any")


def test_an_allreduce_that_is_no_ring_is_labelled(mpirun: Callable[..., object], tmp_path: Path) -> None:
    recursive_doubling = {"OMPI_MCA_coll_tuned_allreduce_algorithm": "3"}
    ended = mpirun(4, "run", *SHORT, *RING, "--out", tmp_path / "out", **recursive_doubling)
    assert ended.returncode == 0, ended.stderr
    assert "not_ring" in only_record(tmp_path / "out").labels


def test_saved_parameters_are_those_of_the_reference(
    mpirun: Callable[..., object], psring: Callable[..., object], tmp_path: Path
) -> None:
    short = ["--steps", 3, "--warmup-steps", 0, *SGD]
    ended = mpirun(3, "run", *SERVERS_1, *short, "--batch-size", 2, "--save-parameters", tmp_path / "served.pt")
    assert ended.returncode == 0, ended.stderr
    assert psring("run", *short, "--batch-size", 4, "--save-parameters", tmp_path / "alone.pt").returncode == 0
    served, alone = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("served", "alone"))
    assert served.keys() == alone.keys()
    for name, reference in alone.items():
        assert torch.linalg.norm(served[name] - reference) <= 1e-5 * (torch.linalg.norm(reference) + 1e-3)
