"""Real ranks under mpirun and horovodrun: each trains the one-process model and counts what was predicted."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import records
from bench.config import RunConfig
from bench.ledger import predict
from bench.records import RunRecord
from bench.sweep.launch import run_flags
from strategies.parameter_server.progress import LARGE_BYTES, MAX_AHEAD
from tests.support.processes import PSRING, REPOSITORY, run_command

pytestmark = pytest.mark.launcher

SHORT: dict[str, Any] = {
    "steps": 4, "warmup_steps": 2, "batch_size": 4, "block_size": 32, "check_equivalence": True,
    "max_foreign_cpu_share": 1,
}  # fmt: skip
SGD = {"optimizer": "sgd", "learning_rate": 0.1}
SERVED = {"strategy": "parameter_server"}
COLOCATED = {"strategy": "parameter_server", "placement": "colocated"}
MIXED = {"strategy": "parameter_server", "placement": "mixed", "num_servers": 1}
SENT = {"shared_memory": False}
PRIORITY = {"schedule": "priority", "window_bytes": 100_000}
RING = {"strategy": "ring_allreduce"}
MPI_RING = {"strategy": "mpi_ring"}
DDP = {"strategy": "ddp"}
ZERO = {"strategy": "zero"}
PIPELINE = {"strategy": "pipeline"}
TENSORS = {"strategy": "tensor_parallel"}
TWO_SERVED_COPIES = {"model_parallel_size": 2, "between_copies": "servers"}
SPLIT = ("pipeline", "tensor_parallel")
FSDP = {"strategy": "fsdp"}
ACCUMULATE_AND_CLIP = {"gradient_accumulation": 2, "clip_norm": 0.3}
HOT = {"sharding": "tensors", "vocab_size": 4096}
HOT_SHARE = 4096 * 48 / 283_056  # of the token embedding in gpt-nano with that vocabulary and 32 positions
ASLEEP = {
    "compute": "emulated", "emulated_forward_s": 0.01, "emulated_backward_s": 0.02, "speed_factor": "1=0.5",
    "gradient_accumulation": 2, "check_equivalence": False,
}  # fmt: skip
CELLS: list[dict[str, Any]] = [
    {"num_workers": 1, "num_servers": 1, **SERVED, **SGD},
    {"num_workers": 2, "num_servers": 1, **SERVED, **SGD, **ACCUMULATE_AND_CLIP},
    {"num_workers": 2, "num_servers": 1, **SERVED, "wire_dtype": "bf16", "precision": "fp16"},
    {"num_workers": 2, "num_servers": 2, **SERVED},
    {"num_workers": 3, "num_servers": 2, **SERVED, **ACCUMULATE_AND_CLIP, "wire_dtype": "fp16", "chunk_bytes": 40_000},
    {"num_workers": 2, **COLOCATED, **SGD},
    {"num_workers": 3, **COLOCATED, **ACCUMULATE_AND_CLIP, **PRIORITY},
    {"num_workers": 3, **MIXED, **SGD, "chunk_bytes": 10_000},
    {"num_workers": 3, "num_servers": 2, **SERVED, **SENT, **ACCUMULATE_AND_CLIP, **HOT},
    {"num_workers": 3, "num_servers": 1, **SERVED, **SGD, **PRIORITY, "consistency": "ssp"},
    {"num_workers": 2, "num_servers": 2, **SERVED, **SENT, **SGD, **ACCUMULATE_AND_CLIP},
    {"num_workers": 3, **COLOCATED, **SENT, **PRIORITY, "wire_dtype": "bf16"},
    {"num_workers": 5, **COLOCATED, "wire_dtype": "bf16", "precision": "fp16"},
    {"num_workers": 2, **RING, **SGD, **ACCUMULATE_AND_CLIP},
    {"num_workers": 3, **RING, "wire_dtype": "fp16", "precision": "fp16"},
    {"num_workers": 4, **RING, **SGD},
    {"num_workers": 2, **MPI_RING, **SGD, **ACCUMULATE_AND_CLIP, "segment_bytes": 2000},
    {"num_workers": 3, **MPI_RING, "wire_dtype": "fp16", "precision": "fp16"},
    {"num_workers": 4, **MPI_RING, **SGD, **ACCUMULATE_AND_CLIP, "wire_dtype": "bf16"},
    {"num_workers": 5, **MPI_RING, **SGD},
    {"num_workers": 2, **DDP, **SGD, "precision": "bf16"},
    {"num_workers": 3, **DDP, **ACCUMULATE_AND_CLIP, "wire_dtype": "bf16"},
    {"num_workers": 2, **ZERO, **SGD, **ACCUMULATE_AND_CLIP},
    {"num_workers": 3, **ZERO, "wire_dtype": "bf16"},
    {"num_workers": 4, **ZERO, **SGD, "segment_bytes": 2000},
    {"num_workers": 3, **PIPELINE, **SGD, "batch_size": 6, "clip_norm": 0.3},
    {"num_workers": 2, **PIPELINE, **SGD, "n_layer": 2, "pipeline_schedule": "gpipe", "precision": "bf16"},
    {"num_workers": 4, **PIPELINE, **SGD, **ACCUMULATE_AND_CLIP, "n_layer": 2, "model_parallel_size": 2},
    {"num_workers": 3, **TENSORS, **SGD},
    {"num_workers": 4, **TENSORS, **SGD, **ACCUMULATE_AND_CLIP, **TWO_SERVED_COPIES, "n_head": 4},
    {"num_workers": 4, **PIPELINE, **SGD, **TWO_SERVED_COPIES, "n_layer": 2},
    {"num_workers": 4, **TENSORS, **SGD, **ACCUMULATE_AND_CLIP, "n_head": 4, "model_parallel_size": 2},
    {"num_workers": 2, **TENSORS, **SGD, **ACCUMULATE_AND_CLIP, "n_head": 4, "sequence_parallel": True},
    {"num_workers": 2, **FSDP, **SGD, **ACCUMULATE_AND_CLIP},
    {"num_workers": 3, **FSDP, "clip_norm": 0.3, "wire_dtype": "bf16", "reshard_after_forward": False},
    {"num_workers": 4, **FSDP, **SGD},
]
SLEEPING: list[dict[str, Any]] = [
    {"num_workers": 2, "num_servers": 1, **SERVED, **ASLEEP},
    {"num_workers": 3, **RING, **ASLEEP},
    {"num_workers": 4, **PIPELINE, **ASLEEP, "n_layer": 2, "model_parallel_size": 2, "batch_size": 8},
    {"num_workers": 3, **FSDP, **ASLEEP},
]
STRAGGLING: list[dict[str, Any]] = [
    {"num_workers": 3, "num_servers": 1, **SERVED, **ASLEEP, "speed_factor": "1=0.2", **bound}
    for bound in ({"consistency": "ssp", "staleness": 2}, {"consistency": "asp"})
]
LOSSY: list[dict[str, Any]] = [
    {"num_workers": 3, **COLOCATED, "compression": "int8"},
    {"num_workers": 2, "num_servers": 1, **SERVED, "sync_every": 2},
]


def describe(cell: dict[str, Any]) -> str:
    return " ".join(str(value) for value in cell.values())


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunRecord]:
    """Every cell, run by one sweep: those of one world share a launch."""
    folder = tmp_path_factory.mktemp("launched")
    grid = [*CELLS, *SLEEPING, *STRAGGLING, *({**cell, "check_equivalence": False} for cell in LOSSY)]
    (folder / "sweep.yaml").write_text(json.dumps({"defaults": SHORT, "grid": grid}))
    ended = run_command([*PSRING, "sweep", str(folder / "sweep.yaml"), "--out", str(folder / "out")], timeout_s=900)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = records.read(folder / "out")
    for record in found:
        assert_steps_add_up(folder / "out", record)
    return {record.cell: record for record in found}


def record_of(launched: dict[str, RunRecord], cell: dict[str, Any]) -> RunRecord:
    return launched[RunConfig.model_validate({**SHORT, **cell}).digest()]


def only_record(out: Path) -> RunRecord:
    (record,) = records.read(out)
    assert_steps_add_up(out, record)
    assert (out / "environment.json").exists()
    return record


def assert_steps_add_up(out: Path, record: RunRecord) -> None:
    """The bytes and messages of all steps of all workers are those of the ledger, of whichever strategy."""
    with (out / "steps" / f"{record.run_id}.csv").open() as file:
        steps = list(csv.DictReader(file))
    assert len(steps) == record.config.total_steps * record.config.num_workers
    assert record.ledger is not None
    for prefix, volume in (("", record.ledger.worker.counted), ("wire_", record.ledger.worker.wire)):
        for name, mean in vars(volume).items():
            values = [step[prefix + name] for step in steps if prefix + name in step]
            if mean is None:
                assert not values or "" in values  # one worker whose count is unknown makes the mean unknown
            else:
                assert sum(map(float, values)) / len(steps) == pytest.approx(mean, rel=1e-12)


def assert_on_sockets(record: RunRecord) -> None:
    """The kernel saw on TCP sockets what the strategy counted, and little more."""
    assert record.ledger is not None
    assert record.ledger.wire_counted_by == "sockets"
    assert record.ledger.wire_ratios()
    for ratio in record.ledger.wire_ratios().values():
        assert 0.99 <= ratio <= 1.3  # small messages, library negotiation, retransmissions


def assert_true_run(record: RunRecord) -> None:
    """What every run must keep: the reference's model, and every byte accounted for."""
    assert record.status == "ok"
    assert record.summary is not None
    assert record.summary.equivalence_error is not None
    assert record.summary.equivalence_bound is not None
    assert record.summary.equivalence_error <= record.summary.equivalence_bound
    assert record.ledger is not None
    assert record.ledger.agrees
    tolerance_bytes = predict(record.config).tolerance_bytes
    for role in (record.ledger.worker, record.ledger.server) if record.config.num_servers else (record.ledger.worker,):
        for name in ("bytes_sent", "bytes_received"):
            assert abs(getattr(role.counted, name) - getattr(role.predicted, name)) <= tolerance_bytes
    servers_sent = (record.ledger.server.counted.bytes_sent or 0) * record.config.num_servers
    workers_received = (record.ledger.worker.counted.bytes_received or 0) * record.config.num_workers
    if record.config.num_servers == 1 and record.config.placement == "dedicated":
        assert servers_sent == workers_received
    if record.config.strategy == "parameter_server":
        assert record.summary.shard_imbalance is not None
        whole = record.config.sharding == "tensors"
        assert record.summary.shard_imbalance == pytest.approx(2 * HOT_SHARE if whole else 1, rel=0.01)


@pytest.mark.parametrize("cell", CELLS, ids=describe)
def test_every_topology_trains_the_reference_model_and_counts_every_byte(
    launched: dict[str, RunRecord], cell: dict[str, Any]
) -> None:
    record = record_of(launched, cell)
    assert_true_run(record)
    assert "loopback" in record.labels
    serves = record.config.strategy == "parameter_server" or record.config.between_copies == "servers"
    assert ("shared_memory" in record.labels) == (serves and record.config.shared_memory)
    assert record.summary is not None
    assert record.ledger is not None
    over_gloo = record.config.strategy in ("ddp", "fsdp", *SPLIT) and not serves
    if over_gloo and record.config.world_size > 1:  # Gloo uses TCP on one machine, too
        assert_on_sockets(record)
    else:
        assert record.ledger.wire_counted_by is None
        assert "shared memory" in (record.ledger.wire_remark or "")
    if record.config.kind.family in ("ring", "library allreduce"):
        assert record.summary.allreduce_algorithm == ("ring" if record.config.world_size > 2 else "any")
    if record.config.strategy in ("parameter_server", "mpi_ring", "zero"):
        assert record.summary.duplex_factor is not None
        assert record.summary.duplex_factor > 0


@pytest.mark.parametrize("cell", SLEEPING, ids=describe)
def test_emulated_compute_sends_the_same_bytes_and_has_no_loss(
    launched: dict[str, RunRecord], cell: dict[str, Any]
) -> None:
    record = record_of(launched, cell)
    assert record.status == "ok"
    assert record.summary is not None
    assert (record.summary.first_loss, record.summary.final_loss, record.summary.held_out_loss) == (None, None, None)
    assert record.summary.sleep_overshoot_s_p95 is not None
    assert record.ledger is not None
    assert record.ledger.agrees
    assert "emulated_compute" in record.labels


@pytest.mark.parametrize("cell", STRAGGLING, ids=describe)
def test_a_straggler_is_waited_for_within_the_bound(launched: dict[str, RunRecord], cell: dict[str, Any]) -> None:
    record = record_of(launched, cell)
    assert record.ledger is not None
    assert record.ledger.agrees
    assert record.summary is not None
    lead = record.summary.largest_lead
    assert lead is not None
    assert lead == 2 if record.config.consistency == "ssp" else lead > 2
    assert (record.summary.mean_staleness or 0) > 0


@pytest.mark.parametrize("cell", LOSSY, ids=describe)
def test_compression_and_local_steps_are_counted(launched: dict[str, RunRecord], cell: dict[str, Any]) -> None:
    record = record_of(launched, {**cell, "check_equivalence": False})
    assert record.status == "ok"
    assert record.ledger is not None
    assert record.ledger.agrees
    dense = RunConfig.model_validate({**SHORT, **cell, "compression": "none", "sync_every": 1})
    assert record.ledger.worker.counted.bytes_sent < 0.51 * predict(dense).worker.bytes_sent


def flags(values: dict[str, Any]) -> list[str]:
    return run_flags(RunConfig.model_validate({"launcher": "mpirun", **values}))


def test_under_horovodrun(horovodrun: Callable[..., object], tmp_path: Path) -> None:
    """tests/test_cli.py starts 2 ranks under it."""
    ended = horovodrun(3, "run", *flags({**SHORT, **RING, **SGD}), "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    record = only_record(tmp_path / "out")
    assert_true_run(record)
    assert record.config.launcher == "horovodrun"
    assert_on_sockets(record)
    assert record.summary.allreduce_algorithm == "ring"


def test_an_allreduce_that_is_no_ring_is_labelled(mpirun: Callable[..., object], tmp_path: Path) -> None:
    recursive_doubling = {"OMPI_MCA_coll_tuned_allreduce_algorithm": "3"}
    ended = mpirun(4, "run", *flags({**SHORT, **RING}), "--out", tmp_path / "out", **recursive_doubling)
    assert ended.returncode == 0, ended.stderr
    assert "not_ring" in only_record(tmp_path / "out").labels


@pytest.mark.parametrize(
    "knobs", [{**SERVED, "num_servers": 1, **SENT, "chunk_bytes": 200_000}, MPI_RING], ids=describe
)
def test_eager_messages_over_tcp_give_the_same_model(
    mpirun: Callable[..., object], tmp_path: Path, knobs: dict[str, Any]
) -> None:
    """Far above Open MPI's own limit, and above its largest fragment."""
    eager = {"eager_limit_bytes": 300_000, "segment_bytes": 200_000}
    ended = mpirun(3, "run", *flags({**SHORT, **knobs, **eager}), "--out", tmp_path / "out", OMPI_MCA_btl="tcp,self")
    assert ended.returncode == 0, ended.stderr
    record = only_record(tmp_path / "out")
    assert_true_run(record)
    assert_on_sockets(record)


def test_more_large_messages_may_be_in_flight_than_receives_are_posted(
    mpirun: Callable[..., object], tmp_path: Path
) -> None:
    """Without a window, over TCP, where they take long: one that comes unexpected must not be received twice."""
    silent = {"compute": "none", "steps": 20, "eval_batches": 0, "max_foreign_cpu_share": 1}
    many = {**SERVED, **SENT, "num_servers": 1, "model": "gpt-mini", "chunk_bytes": 300_000, "window_bytes": None}
    assert (
        RunConfig.model_validate({**many, "launcher": "mpirun"}).wire_bytes
        > 2 * MAX_AHEAD * 300_000
        > 2 * MAX_AHEAD * LARGE_BYTES
    )
    ended = mpirun(3, "run", *flags({**many, **silent}), "--out", tmp_path / "out", OMPI_MCA_btl="tcp,self")
    assert ended.returncode == 0, ended.stderr
    assert only_record(tmp_path / "out").status == "ok"


@pytest.mark.parametrize("knobs", [{**SERVED, "num_servers": 1}, FSDP], ids=describe)
def test_saved_parameters_are_those_of_the_reference(
    mpirun: Callable[..., object], psring: Callable[..., object], tmp_path: Path, knobs: dict[str, Any]
) -> None:
    short = flags({"steps": 3, "warmup_steps": 0, **SGD})
    ended = mpirun(
        2 + knobs.get("num_servers", 0),
        "run",
        *flags(knobs),
        *short,
        "--batch-size",
        2,
        "--save-parameters",
        tmp_path / "served.pt",
    )
    assert ended.returncode == 0, ended.stderr
    assert psring("run", *short, "--batch-size", 4, "--save-parameters", tmp_path / "alone.pt").returncode == 0
    ours, alone = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("served", "alone"))
    assert ours.keys() == alone.keys()
    for name, reference in alone.items():
        assert torch.linalg.norm(ours[name] - reference) <= 1e-5 * (torch.linalg.norm(reference) + 1e-3)


BROKEN_AVERAGE = """
import torch.distributed as dist
from strategies.fsdp import FSDP, ReduceScatter

class Summed(ReduceScatter):
    def __call__(self, output_tensor, input_tensor, group, op, async_op=False):
        return super().__call__(output_tensor, input_tensor, group, dist.ReduceOp.SUM, async_op)

class Summing(FSDP):
    exact = gathers_weights = True
    def _shard(self, model):
        super()._shard(model)
        for group in self._groups():
            group.set_custom_reduce_scatter(Summed(self._scattered))
"""


def test_a_reduce_scatter_that_sums_instead_of_averaging_is_caught(
    mpirun: Callable[..., object], tmp_path: Path
) -> None:
    """As some builds of Gloo did (pytorch#162338)."""
    (tmp_path / "summing.py").write_text(BROKEN_AVERAGE)
    broken = [*flags(SHORT), "--strategy", "summing:Summing"]
    ended = mpirun(2, "run", *broken, "--out", tmp_path / "out", PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    assert ended.returncode == 1, ended.stderr
    record = only_record(tmp_path / "out")
    assert record.status == "invalid"
    assert "another model than one process" in (record.reason or "")
