"""RunRecords nobody measured: builders for tests of everything that only reads results."""

from __future__ import annotations

from typing import Any

from bench.config import RunConfig
from bench.ledger import Ledger, RoleVolumes
from bench.records import PlannedRun, RunRecord, Status, StepRecord
from bench.summary import Summary
from bench.sweep.file import cross_product
from strategies.volume import Volume

RATES = {"local": 1.0, "parameter_server": 0.7, "ring_allreduce": 0.85, "mpi_ring": 0.87, "ddp": 0.9}
PHASES = ("data_s", "forward_s", "backward_s", "exposed_communication_s", "optimizer_s")
STARTED = "2025-01-01T00:00:00+00:00"


def make_record(
    *,
    repeat: int = 0,
    tokens_per_s: float = 1000.0,
    environment: str = "e0",
    labels: tuple[str, ...] = ("loopback",),
    final_loss: float = 2.5,
    **config_overrides: Any,
) -> RunRecord:
    """An ok run of the given speed whose other numbers follow from its config."""
    if config_overrides.get("strategy") == "parameter_server":
        config_overrides.setdefault("num_servers", 1)
    config = RunConfig(**config_overrides)
    return PlannedRun(config=config, repeat=repeat).record(
        "ok",
        environment,
        started_at=STARTED,
        labels=list(labels),
        summary=make_summary(config, tokens_per_s, final_loss),
        ledger=make_ledger(config),
    )


def make_rejected(tokens_per_s: float, disturbance: float = 0.05, **values: Any) -> RunRecord:
    """A run that the guard rejected; its numbers were measured."""
    made = make_record(tokens_per_s=tokens_per_s, **values)
    assert made.summary is not None
    summary = made.summary.model_copy(update={"disturbance": disturbance})
    rejected = {"status": "invalid", "reason": "other processes used the cores", "rejected": True, "summary": summary}
    return made.model_copy(update=rejected)


def make_failure(
    status: Status, reason: str, *, repeat: int = 0, environment: str = "e0", **config_overrides: Any
) -> RunRecord:
    """A run that came to nothing."""
    planned = PlannedRun(config=RunConfig(**config_overrides), repeat=repeat)
    return planned.record(status, environment, started_at=STARTED, reason=reason)


def make_summary(config: RunConfig, tokens_per_s: float, final_loss: float) -> Summary:
    """Numbers of a step that takes as long as tokens_per_s says."""
    step_s = config.tokens_per_step / tokens_per_s
    alone = config.num_workers == 1 and config.num_servers == 0
    communication_s = 0.0 if alone else 0.4 * step_s
    compute_s = 0.9 * step_s - 0.75 * communication_s
    return Summary(
        num_nodes=1, num_parameters=config.gpt.num_parameters, tokens_per_s=tokens_per_s,
        step_s=step_s, step_s_p95=1.2 * step_s, data_s=0.02 * compute_s, forward_s=0.33 * compute_s,
        backward_s=0.6 * compute_s, exposed_communication_s=0.75 * communication_s,
        optimizer_s=0.05 * compute_s, communication_s=communication_s,
        overlap_fraction=None if alone else 0.25, first_loss=5.5, final_loss=final_loss,
        held_out_loss=final_loss + 0.1,
        allreduce_algorithm="ring" if "ring" in config.strategy else None,
        equivalence_error=None if alone else 2e-7, equivalence_bound=None if alone else 1e-5,
        worker_cpu_s=20 * step_s, worker_peak_memory_bytes=3e8,
    )  # fmt: skip


def make_ledger(config: RunConfig) -> Ledger:
    """What the closed forms say, counted exactly."""
    workers, servers, size = config.num_workers, config.num_servers, float(config.wire_bytes)
    if servers:
        return Ledger(_exact(size), _exact(workers * size / servers), agrees=True)
    if config.strategy in ("ring_allreduce", "mpi_ring", "ddp"):
        return Ledger(_exact(2 * size * (workers - 1) / workers), agrees=True)
    return Ledger()


def _exact(nbytes: float) -> RoleVolumes:
    """As many bytes each way, counted and predicted alike."""
    return RoleVolumes(*(Volume(nbytes, nbytes, None, None) for _ in ("counted", "predicted")))


def demo_records(repeats: int = 3) -> list[RunRecord]:
    """A whole study: two topologies, local and ddp, with one unsupported and two failed cells."""
    cells = cross_product({
        "precision": ["fp32", "bf16"], "batch_size": [4, 8], "strategy": list(RATES),
        "num_workers": [1, 2, 4],
    })  # fmt: skip
    possible = [cell for cell in cells if cell["strategy"] != "local" or cell["num_workers"] == 1]
    return [demo_record(repeat, **cell) for repeat in range(repeats) for cell in possible] + demo_failures()


def demo_record(repeat: int, **cell: Any) -> RunRecord:
    """A launch with some deterministic noise; bf16 is slower, as on most CPUs."""
    workers = cell["num_workers"]
    noise = 1 + 0.02 * ((7 * repeat + 3 * workers + cell["batch_size"]) % 5 - 2)
    arithmetic = (0.8 if cell["precision"] == "bf16" else 1.0) * (1.1 if cell["batch_size"] == 8 else 1.0)
    speed = 3000 * RATES[cell["strategy"]] * workers**0.7 * arithmetic * noise
    labels = ("loopback", "oversubscribed") if workers > 2 else ("loopback",)
    return make_record(repeat=repeat, tokens_per_s=speed, labels=labels, **cell)


def demo_failures() -> list[RunRecord]:
    """One cell that no library can run, one whose launches all failed, one launch lost of an ok cell."""
    ring = {"strategy": "ring_allreduce", "num_workers": 2}
    server: dict[str, Any] = {"strategy": "parameter_server", "num_servers": 2, "num_workers": 4}
    config = RunConfig(**ring, wire_dtype="bf16")
    return [
        make_failure("unsupported", config.unsupported() or "", **ring, wire_dtype="bf16"),
        *(make_failure("timeout", "no step within 600 s <rank 3>", repeat=r, **server) for r in range(2)),
        make_failure("failed", "rank 1 was killed by signal 9", repeat=9, **ring, batch_size=4),
    ]


def make_steps(record: RunRecord) -> list[StepRecord]:
    """The raw steps of an ok run: the loss falls from first to final, with a little noise of step and worker."""
    config, found = record.config, record.summary
    assert found is not None
    phases = {name: getattr(found, name) for name in PHASES}
    fall = (found.first_loss or 0) - (found.final_loss or 0)
    return [
        StepRecord(
            worker=worker, step=step, warmup=step < config.warmup_steps,
            loss=(found.final_loss or 0) + fall * 0.8**step + 0.01 * ((3 * step + worker) % 4),
            step_s=found.step_s * (1 + 0.01 * ((step + worker) % 3)), communication_s=found.communication_s, **phases,
            moved=Volume.unknown(),
        )
        for worker in range(config.num_workers)
        for step in range(config.total_steps)
    ]  # fmt: skip
