"""The predicted step of a cell, and what it consists of."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bench.config import BadInput
from bench.predict import allreduce, compute, push_pull, sharded, split
from bench.predict.calibration import ClusterCalibration
from bench.predict.cell import Cell
from bench.predict.compute import Compute


@dataclass(frozen=True)
class Breakdown:
    """One predicted step, seconds. What resources spend overlaps, so that it does not add up to `step_s`.

    What a cost adds to the step: the difference of `step_s` to that of a calibration without it.
    """

    step_s: float
    tokens_per_s: float
    compute_s: float  # forward, backward, the update where workers run it, and overhead, of a worker of mean speed
    straggler_s: float  # what the slowest worker computes longer
    exposed_communication_s: float  # the rest of step_s
    worker_link_s: float  # the busier direction of a worker's link carries data
    server_link_s: float | None  # the same of the busiest dedicated server; None without one
    local_link_s: float  # between ranks of a node
    worker_cpu_s: float  # messages, copies and sums of a worker's process
    server_cpu_s: float | None  # messages, sums and updates of a dedicated server's process
    latency_s: float  # one after another, if nothing else took time
    cycle_s: float  # waiting for a fusion cycle
    bubble_s: float  # a stage of a pipeline waits for others, if messages took no time

    @property
    def bound(self) -> str:
        """The resource that takes longest: compute, worker link, server link, worker CPU or server CPU."""
        found = {
            "compute": self.compute_s + self.straggler_s,
            "worker link": self.worker_link_s,
            "server link": self.server_link_s or 0.0,
            "worker CPU": self.worker_cpu_s,
            "server CPU": self.server_cpu_s or 0.0,
        }
        return max(found, key=found.__getitem__)


def step_time(cell: Cell, calibration: ClusterCalibration) -> Breakdown:
    """Predict one step. BadInput where the strategy has no model, or the compute or the link is not known."""
    config = cell.config
    of_one = compute.of_cell(cell, calibration)
    # A worker that waits for nobody averages its own jitter; only a lasting difference of speed counts.
    waits = config.synchronous or not config.kind.has_servers
    slowest = compute.slowest(config, calibration) if waits else 1 / min(compute.speeds(config, calibration))
    slowed = of_one if slowest == 1 else of_one.times(slowest)
    form = FORMS.get(config.kind.exchange, _reduced)
    if not config.kind.exchange or config.kind.closed_form is None:
        raise BadInput(f"strategy: {config.strategy} has no model of its messages; leave it out of the prediction")
    found = form(cell, calibration, slowed)
    if slowed is of_one:
        return found
    compute_s = form(cell, calibration, of_one).compute_s
    return replace(found, compute_s=compute_s, straggler_s=found.compute_s - compute_s)


def _breakdown(cell: Cell, step_s: float, compute_s: float, **found: float | None) -> Breakdown:
    costs = dict.fromkeys(("worker_link_s", "local_link_s", "worker_cpu_s", "latency_s", "cycle_s", "bubble_s"), 0.0)
    given: dict[str, float | None] = {"server_link_s": None, "server_cpu_s": None, **costs, **found}
    return Breakdown(
        step_s=step_s, tokens_per_s=cell.config.tokens_per_step / step_s if step_s else 0.0, compute_s=compute_s,
        straggler_s=0.0, exposed_communication_s=max(0.0, step_s - compute_s), **given,  # type: ignore[arg-type]
    )  # fmt: skip


def _alone(cell: Cell, calibration: ClusterCalibration, own: Compute) -> Breakdown:
    """Workers that never communicate."""
    compute_s = own.forward_backward_s + own.optimizer_s + own.overhead_s
    return _breakdown(cell, compute_s, compute_s)


def _reduced(cell: Cell, calibration: ClusterCalibration, own: Compute) -> Breakdown:
    """An allreduce of every gradient, then an update on every worker."""
    payload, of_one = cell.payload, allreduce.cost(cell, calibration)
    compute_s = own.forward_backward_s + own.optimizer_s + own.overhead_s
    end = allreduce.last_end(cell, calibration, own)
    exposed = max(0.0, end - float(own.backward.sum()) / own.passes)
    fused = cell.config.kind.exchange == "fusion" and cell.config.num_workers > 1
    return _breakdown(
        cell, compute_s + exposed, compute_s,
        worker_link_s=of_one.link_s_per_byte * payload,
        local_link_s=of_one.local_s_per_byte * payload,
        worker_cpu_s=of_one.cpu_s_per_byte * payload + of_one.message_cpu_s,
        latency_s=of_one.latency_s,
        cycle_s=fused * (cell.config.cycle_time_s + calibration.cycle_s),
    )  # fmt: skip


def _halved(cell: Cell, calibration: ClusterCalibration, own: Compute) -> Breakdown:
    """A reduce-scatter, the update of a rank's part, and an all-gather that the next forward waits for."""
    works = sharded.zero_works(cell, calibration, own)
    spent = loads(works)
    step_s, compute_s = _period(cell, calibration, own, works)
    return _breakdown(
        cell, step_s, compute_s, worker_link_s=spent.get(push_pull.UP, 0.0),
        local_link_s=spent.get(push_pull.LOCAL, 0.0), worker_cpu_s=spent.get(push_pull.WORKER_CPU, 0.0),
        latency_s=2 * (cell.senders - 1) * calibration.latency_s,
    )  # fmt: skip


def _blocked(cell: Cell, calibration: ClusterCalibration, own: Compute) -> Breakdown:
    """Passes that wait for every message (fsdp on Gloo, tensor_parallel), or for the stage before (pipeline)."""
    config, form, bubble_s = cell.config, cell.config.kind.exchange, 0.0
    if form == "gathers":
        line, computed_s = sharded.fsdp(cell, calibration, own), own.forward_backward_s
        held = 1 / config.num_workers
    elif form == "stages":
        line, stages = split.pipeline(cell, calibration, own), split.stages(cell, own)
        computed_s = max(stage.forward_s + stage.backward_s for stage in stages)
        held = max(stage.parameters for stage in stages) / cell.num_parameters
        bubble_s = split.schedule_end(cell, stages, 0.0, 0.0) - computed_s
    else:
        line = split.tensor_parallel(cell, calibration, own)
        computed_s, held = line.now - line.waited_s, split.held_numbers(cell) / cell.num_parameters
    after_s = held * own.optimizer_s + own.overhead_s
    link_s = 0.0
    if line.sent_bytes:
        link_s = line.sent_bytes * calibration.duplex_factor / allreduce.slowest_link(cell, calibration)
    return _breakdown(
        cell, line.now + after_s, computed_s + after_s, worker_link_s=link_s, worker_cpu_s=line.cpu_s,
        latency_s=line.latency_s, bubble_s=bubble_s,
    )  # fmt: skip


def _served(cell: Cell, calibration: ClusterCalibration, own: Compute) -> Breakdown:
    """Push and pull. Equal workers that wait for nobody (asp, ssp) push together all the same.

    They begin together, and TCP shares a link evenly between the transfers under way, so that they end together, too.
    """
    config = cell.config
    works = push_pull.works(cell, calibration, own, cell.senders)
    spent = loads(works)
    step_s, compute_s = _period(cell, calibration, own, works)
    per_step = 1 / config.sync_every
    has_own = config.num_servers > 0
    return _breakdown(
        cell, step_s, compute_s,
        worker_link_s=per_step * max(spent.get(push_pull.UP, 0.0), spent.get(push_pull.DOWN, 0.0)),
        worker_cpu_s=per_step * spent.get(push_pull.WORKER_CPU, 0.0),
        server_link_s=per_step * _busiest(cell, spent, (0, 1)) if has_own else None,
        server_cpu_s=per_step * _busiest(cell, spent, (2,)) if has_own else None,
        latency_s=2 * calibration.latency_s * (2 if config.needs_norm else 1) * per_step,
    )  # fmt: skip


def _busiest(cell: Cell, spent: dict[int, float], kinds: tuple[int, ...]) -> float:
    """Return the load of the busiest dedicated server's link or processor."""
    first, number = push_pull.SERVER_UP, cell.config.num_servers
    own = (s for r, s in spent.items() if first <= r < first + 3 * number and (r - first) % 3 in kinds)
    return max(own, default=0.0)


def loads(works: list[push_pull.Work]) -> dict[int, float]:
    """Return the seconds that each resource spends on one exchange."""
    spent: dict[int, float] = {}
    for work in works:
        for resource, seconds in (*work.push, *work.serve, *work.reply):
            spent[resource] = spent.get(resource, 0.0) + seconds
    return spent


def unloaded(cell: Cell, calibration: ClusterCalibration, own: Compute) -> tuple[float, float]:
    """Return the step of a worker that has the servers to itself, and the compute in it."""
    return _period(cell, calibration, own, push_pull.works(cell, calibration, own, 1))


def _period(
    cell: Cell, calibration: ClusterCalibration, own: Compute, works: list[push_pull.Work]
) -> tuple[float, float]:
    """Return the seconds from one step's last backward to the next one's, and the compute in it.

    All weights are pulled when the next forward ends, so that the network is idle when its backward begins.
    """
    config = cell.config
    if config.sync_every > 1:
        works = [replace(work, ready_s=0.0) for work in works]
    if config.schedule == "priority":
        works = push_pull.in_order_of_priority(works)
    burst_s = calibration.burst_bytes / allreduce.slowest_link(cell, calibration) if calibration.burst_bytes else 0.0
    latency_s = calibration.latency_s
    norm_s = 2 * latency_s  # to the first server and back
    if config.kind.exchange == "halves":
        norm_s, latency_s = latency_s, (cell.senders - 1) * latency_s  # from all to all; round the ring
    window = math.inf if config.window_bytes is None else config.window_bytes
    arrivals = push_pull.exchange(works, latency_s, norm_s if config.needs_norm else None, burst_s, window)
    if cell.senders == 1 and not config.num_servers:
        arrivals = [work.ready_s for work in works]
    needed = push_pull.needed_by_layer(cell, works, arrivals)
    backward_s = 0.0 if config.sync_every > 1 else float(own.backward.sum()) / own.passes
    on_worker = own.optimizer_s if config.server_role == "sum" or config.sync_every > 1 else 0.0
    compute_s = own.forward_backward_s + on_worker + own.overhead_s
    now = backward_s
    if config.server_role == "sum":
        now = max(now, float(needed.max()))
        needed = needed * 0
    for layer_s, at in zip((own.forward / own.passes).tolist(), needed.tolist(), strict=True):
        now = max(now, at) + layer_s
    exposed = now - backward_s - float(own.forward.sum()) / own.passes
    return compute_s + exposed / config.sync_every, compute_s


FORMS = {
    "none": _alone, "push_pull": _served, "halves": _halved, "gathers": _blocked, "stages": _blocked, "sums": _blocked,
}  # fmt: skip
