"""Event simulation of asynchronous servers: stragglers, jitter, uneven links, and the sharing of the busiest server.

A worker's exchange begins during its compute X and ends at the earliest when what compute cannot hide of an unloaded
exchange has passed. All exchanges under way share the busiest server evenly, as TCP shares a link (processor sharing;
Massoulie and Roberts, INFOCOM 1999). SSP(s): worker i begins step k when every worker has
ended step k-1-s (Ho et al., NeurIPS 2013), F_i(k) = max(F_i(k-1), max_j F_j(k-1-s)) + X_i(k) + C_i(k); s = 0 is BSP,
whose exchange is that of the closed form, because all workers then push at once. So do equal workers without jitter.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.links import parse_links
from bench.predict import compute, push_pull
from bench.predict.calibration import ClusterCalibration
from bench.predict.cell import Cell
from bench.predict.step import Breakdown, loads, step_time, unloaded

MEASURED_FROM = 0.2  # of the steps: what came before is start-up


@dataclass(frozen=True)
class Simulated:
    """`tokens_per_s` as runs measure it; staleness in updates of other workers that a gradient did not know."""

    tokens_per_s: float  # of all workers over the longest worker's time
    rate_tokens_per_s: float  # all work between two common marks, while every worker still runs
    step_s: float  # of the slowest worker, mean
    mean_staleness: float
    wait_s: float  # per worker and step, for slower workers


@dataclass(frozen=True)
class Timing:
    """What the simulation of one cell needs, seconds."""

    busy: Sequence[float]  # compute of each worker's step, without jitter
    exposed: Sequence[float]  # of each worker's exchange if no other worker used the server
    service_s: float  # the busiest server's time for one exchange
    begins: float = 1.0  # the exchange begins after this share of a worker's compute


def simulate(cell: Cell, calibration: ClusterCalibration, steps: int = 50, seed: int = 1) -> Simulated:
    """Simulate `steps` steps of every worker of a parameter server; BadInput as for step_time."""
    config = cell.config
    timing = _synchronous(cell, calibration) if config.synchronous else _timing(cell, calibration)
    jitter = _jitter(config.num_workers, steps, compute.jitter(config, calibration), seed)
    ended, staleness, wait_s = run(timing, jitter, config.staleness_bound)
    return _summary(cell, ended, staleness, wait_s)


def expected(cell: Cell, calibration: ClusterCalibration) -> Breakdown:
    """Return the predicted step: the closed form's, or the simulation's where workers differ and do not wait."""
    found = step_time(cell, calibration)
    config = cell.config
    uneven = len(set(compute.speeds(config, calibration))) > 1 or len(set(_worker_links(cell))) > 1
    if config.synchronous or not config.kind.has_servers or not (uneven or compute.jitter(config, calibration)):
        return found
    made = simulate(cell, calibration, steps=max(10, min(50, config.steps)))
    exposed_s = max(0.0, made.step_s - found.compute_s - found.straggler_s)
    return replace(found, step_s=made.step_s, tokens_per_s=made.tokens_per_s, exposed_communication_s=exposed_s)


def run(timing: Timing, jitter: np.ndarray, bound: float) -> tuple[np.ndarray, float, float]:
    """Return when each worker ended each step, (workers, steps); the mean staleness; the mean wait.

    Workers that may not go on are kept by the step that the slowest worker must end first.
    """
    num_workers, steps = jitter.shape
    ended = np.zeros((num_workers, steps))
    clocks, at_clock = [0] * num_workers, [0] * (steps + 1)
    at_clock[0], slowest = num_workers, 0
    blocked: dict[int, list[tuple[float, int]]] = {}
    events: list[tuple[float, bool, int]] = []  # when; whether a step ends, or else an exchange begins; the worker
    sharing: deque[tuple[float, int]] = deque()  # the work at which an exchange ends, the worker; in that order
    now = work = staleness = waited = 0.0  # work: the service that every exchange under way has had since the start
    updates, seen, earliest = 0, [0] * num_workers, [0.0] * num_workers
    compute_s = (jitter * np.array(timing.busy)[:, None]).tolist()

    def begin(worker: int) -> None:
        own_s = compute_s[worker][clocks[worker]]
        earliest[worker] = now + own_s + timing.exposed[worker]
        heapq.heappush(events, (now + timing.begins * own_s, False, worker))

    for worker in range(num_workers):
        begin(worker)
    while events or sharing:
        ended_s = now + max(0.0, sharing[0][0] - work) * len(sharing) if sharing else math.inf
        if not events or ended_s <= events[0][0]:
            now, (work, worker) = ended_s, sharing.popleft()
            heapq.heappush(events, (max(now, earliest[worker]), True, worker))
            continue
        at, step_ends, worker = heapq.heappop(events)
        work += (at - now) / len(sharing) if sharing else 0.0
        now = at
        if not step_ends:
            sharing.append((work + timing.service_s, worker))
            continue
        staleness += updates - seen[worker]
        updates += 1
        seen[worker] = updates
        clock = clocks[worker]
        ended[worker, clock] = now
        clocks[worker] = clock + 1
        at_clock[clock] -= 1
        at_clock[clock + 1] += 1
        while slowest < steps and at_clock[slowest] == 0:
            slowest += 1
            for since, other in blocked.pop(slowest, ()):
                waited += now - since
                begin(other)
        if clock + 1 < steps:
            if clock + 1 - slowest <= bound:
                begin(worker)
            else:
                blocked.setdefault(clock + 1 - int(bound), []).append((now, worker))
    total = num_workers * steps
    return ended, staleness / total, waited / total


def _timing(cell: Cell, calibration: ClusterCalibration) -> Timing:
    config = cell.config
    alone = compute.of_cell(cell, calibration)
    own_s = alone.forward_backward_s + alone.overhead_s
    own_s += alone.optimizer_s if config.server_role == "sum" or config.sync_every > 1 else 0.0
    service = _service_s(cell, loads(push_pull.works(cell, calibration, alone, cell.senders)))
    rates = _worker_links(cell)
    exposed = {rate: _unloaded_s(cell, calibration, rate) - own_s for rate in set(rates)}
    speeds = compute.speeds(config, calibration)
    # The exchanges of equal workers end together after all their service: how long before the end of compute they
    # begin follows from what the closed form leaves exposed of them.
    together_s = step_time(_even(cell), _even_hosts(calibration)).step_s - own_s
    hidden_s = max(0.0, config.num_workers * service - together_s)
    begins = max(0.0, 1 - hidden_s / own_s) if own_s else 1.0
    return Timing([own_s / speed for speed in speeds], [exposed[rate] for rate in rates], service, begins)


def _service_s(cell: Cell, spent: dict[int, float]) -> float:
    """Return the busiest server's time for one push; a server on a worker's rank shares its link and processor."""
    shared = [s for r, s in spent.items() if r >= push_pull.SERVER_UP or cell.config.placement != "dedicated"]
    return max(shared, default=0.0) / cell.senders / cell.config.sync_every


def _synchronous(cell: Cell, calibration: ClusterCalibration) -> Timing:
    """All workers push at once: the closed form's exposed exchange, after the slowest of them."""
    found = step_time(_even(cell), _even_hosts(calibration))
    speeds = compute.speeds(cell.config, calibration)
    return Timing([found.compute_s / speed for speed in speeds], [found.exposed_communication_s] * len(speeds), 0.0)


def _even(cell: Cell) -> Cell:
    """Return the cell without stragglers and jitter."""
    return replace(cell, config=cell.config.model_copy(update={"speed_factor": None, "compute_cv": 0.0}))


def _even_hosts(calibration: ClusterCalibration) -> ClusterCalibration:
    return calibration.model_copy(update={"speed_factors": None, "compute_cv": None})


def _worker_links(cell: Cell) -> list[str | None]:
    """Return each worker's link, as the text of a rate."""
    link, workers = cell.config.link, cell.config.num_workers
    if link is None or "=" not in link:
        return [link] * workers
    rates = parse_links(link, cell.num_nodes, cell.config.num_servers)
    return [f"{rates[worker // cell.ranks_per_node] / 1e3:.0f}kbit" for worker in range(workers)]


def _unloaded_s(cell: Cell, calibration: ClusterCalibration, rate: str | None) -> float:
    """Return the step of a worker with this link that has the servers to itself."""
    config = cell.config
    link = rate
    if config.link is not None and "=" in config.link and config.num_servers:
        rates = parse_links(config.link, cell.num_nodes, config.num_servers)
        link = f"server={min(rates[-config.num_servers :]) / 1e3:.0f}kbit,*={rate}"
    alone = replace(cell, config=config.model_copy(update={"link": link}))
    return unloaded(alone, calibration, compute.of_cell(alone, calibration))[0]


def _jitter(workers: int, steps: int, cv: float, seed: int) -> np.ndarray:
    """Return lognormal factors of mean 1, (workers, steps)."""
    if cv == 0:
        return np.ones((workers, steps))
    sigma = math.sqrt(math.log1p(cv * cv))
    return np.exp(sigma * np.random.default_rng(seed).standard_normal((workers, steps)) - sigma * sigma / 2)


def _summary(cell: Cell, ended: np.ndarray, staleness: float, wait_s: float) -> Simulated:
    config, steps = cell.config, ended.shape[1]
    tokens = config.tokens_per_step / config.num_workers
    first = int(MEASURED_FROM * steps)
    longest = float((ended[:, -1] - ended[:, first]).max()) if steps > 1 else float(ended.max())
    measured = max(1, steps - 1 - first)
    end = float(ended[:, -1].min())
    begin = MEASURED_FROM * end
    within = int(((ended > begin) & (ended <= end)).sum())
    rate = tokens * within / (end - begin) if end > begin else math.nan
    return Simulated(
        tokens_per_s=tokens * config.num_workers * measured / longest if longest else math.nan,
        rate_tokens_per_s=rate, step_s=longest / measured, mean_staleness=staleness, wait_s=wait_s,
    )  # fmt: skip
