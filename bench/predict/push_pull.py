"""Steps that push gradients to servers and pull weights: pieces of the gradient through queues of links and processors.

A push occupies the worker's link upwards and the server's downwards, a reply the other two; servers on workers' ranks
use the workers' links for both, so that each carries 2(n-1)/n·M like a ring. A piece of m bytes occupies the busiest
server's link for lambda·W·m/(S·B). Each queue is served in the order of arrival; a reply begins when its server has
summed and updated the piece, or, if the norm of the whole gradient is needed, all pieces. Together: T >= max(M/B,
lambda·W·M/(S·B)) plus the pipeline's fill, twice that in half duplex.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from functools import partial

import numpy as np

from bench.links import parse_links
from bench.predict.allreduce import pieces, slowest_link
from bench.predict.calibration import ClusterCalibration
from bench.predict.cell import Cell
from bench.predict.compute import Compute
from strategies.options import NUMBER_FORMATS
from strategies.sharding import place_tensors

MAX_PIECES = 128  # more hardly change the result
UP, DOWN, WORKER_CPU, LOCAL, SERVER_UP, SERVER_DOWN, SERVER_CPU = range(7)
Demand = list[tuple[int, float]]  # (resource, seconds)


@dataclass(frozen=True)
class Work:
    """What one piece demands: its push, serving it, and its reply."""

    ready_s: float
    push: Demand
    serve: Demand
    reply: Demand
    begin: float  # which part of the flat gradient it is, elements
    end: float
    in_window: float = 0.0  # bytes that count for the worker's window until the push has arrived
    place: int = 0  # of the pieces that are ready that with the lowest is pushed first


@dataclass(frozen=True)
class Servers:
    """Who serves: the share of the payload on each worker's rank and on the busiest server of its own."""

    num_workers: int  # that push to them
    num_servers: int
    on_worker: float
    own: float

    @staticmethod
    def of(cell: Cell, imbalance: float = 1.0) -> Servers:
        """Return the cell's, with lambda (`imbalance`) times the mean share on the busiest dedicated server."""
        n = cell.senders
        parts = cell.server_parts()
        total = sum(parts.values())
        shares = {rank: part / total for rank, part in parts.items()}
        return Servers(n, len(shares), shares.get(0, 0.0), min(1.0, shares.get(n, 0.0) * imbalance))


def server_link(cell: Cell, calibration: ClusterCalibration) -> float:
    """Return bytes per second of the slowest dedicated server's link."""
    link, servers = cell.config.link, cell.config.num_servers
    if link is None or "=" not in link:
        return calibration.goodput(link)
    return min(parse_links(link, cell.num_nodes, servers)[-servers:]) / 8 * calibration.payload_share


def works(cell: Cell, calibration: ClusterCalibration, compute: Compute, at_once: int) -> list[Work]:
    """Return the pieces in the order of backward. `at_once`: workers whose pushes of one a server takes together."""
    if cell.config.sharding == "tensors":
        return _whole_tensors(cell, calibration, compute, at_once)
    servers, config = Servers.of(cell, calibration.shard_imbalance or 1.0), cell.config
    largest = max(servers.on_worker, servers.own)
    in_chunk = config.chunk_bytes / NUMBER_FORMATS[config.wire_dtype].nbytes
    stripes = max(1, math.ceil(cell.num_parameters * largest / in_chunk))
    number = min(stripes, MAX_PIECES)
    ready, sizes = pieces(cell, compute, number)
    demands = _demands(cell, calibration, compute, servers, sizes[0], stripes / number, at_once)
    elements = cell.num_parameters / number
    return [Work(at, *demands, i * elements, (i + 1) * elements) for i, at in enumerate(ready)]


def _whole_tensors(cell: Cell, calibration: ClusterCalibration, compute: Compute, at_once: int) -> list[Work]:
    """Return one piece per chunk of a tensor, each on the one server that holds the tensor.

    The worker is the one whose rank serves most, if workers' ranks serve. All workers send the same tensor at the same
    time to one server, so that its link is the bottleneck while the others' are idle: the window of every worker
    (`window_bytes`) is then full of chunks for this one. Ranges load all servers alike, and a window holds none back.
    """
    config = cell.config
    of = cell.tensors
    parts = cell.server_parts()
    server_of = place_tensors([tensor.size for tensor in of], list(parts.values()))
    ranks = [list(parts)[server] for server in server_of]
    layers = list(dict.fromkeys(tensor.layer for tensor in reversed(of)))
    ready = dict(zip(layers, compute.ready.tolist(), strict=True))
    piece = max(config.chunk_bytes / NUMBER_FORMATS[config.wire_dtype].nbytes, cell.num_parameters / MAX_PIECES)
    held = np.bincount(ranks, [tensor.size for tensor in of], cell.senders + config.num_servers)
    busiest, found, begin = int(held[: cell.senders].argmax()), list[Work](), 0.0
    turn_of: dict[int, int] = {}  # pieces of each server so far
    for tensor, rank in zip(of, ranks, strict=True):
        number = max(1, math.ceil(tensor.size / piece))
        elements = tensor.size / number
        here = rank == busiest  # what the busiest worker's rank serves to the others does not leave it as its own push
        one = Servers(cell.senders, 1, float(here), float(not here))
        messages = max(1.0, elements * NUMBER_FORMATS[config.wire_dtype].nbytes / config.chunk_bytes)
        nbytes = elements * cell.bytes_per_number
        push, serve, reply = _demands(cell, calibration, compute, one, nbytes, messages, at_once)
        server, others = rank - cell.senders, at_once
        if rank < cell.senders:  # a worker's rank, numbered after the servers of their own; its own push stays there
            server, others = config.num_servers + rank, at_once - 1
        move = partial(_on_server, server=server, share=others / at_once)
        push, serve, reply = (move(demand) for demand in (push, serve, reply))
        for _ in range(number):
            turn = turn_of.get(rank, 0)  # workers push the k-th pieces of all servers before the next ones
            turn_of[rank] = turn + 1
            found.append(Work(ready[tensor.layer], push, serve, reply, begin, begin + elements, nbytes, turn))
            begin += elements
    return found


def _is_link(resource: int) -> bool:
    return resource in (UP, DOWN) or (resource >= SERVER_UP and (resource - SERVER_UP) % 3 < 2)


def _on_server(demand: Demand, server: int, share: float) -> Demand:
    """Move a demand on the server's resources to those of the server with this number, of its links only a share."""
    moved = []
    for resource, seconds in demand:
        if resource >= SERVER_UP:
            moved.append((resource + 3 * server, seconds * (share if _is_link(resource) else 1.0)))
        else:
            moved.append((resource, seconds))
    return moved


def _demands(
    cell: Cell, calibration: ClusterCalibration, compute: Compute, servers: Servers, nbytes: float, stripes: float,
    at_once: int,
) -> tuple[Demand, Demand, Demand]:  # fmt: skip
    """Return what the push, the service and the reply of a piece demand, `stripes` messages to each server."""
    config, n, x, y = cell.config, at_once, servers.on_worker, servers.own
    payload = cell.payload
    worker_s, server_s = (nbytes / rate for rate in _rates(cell, calibration, servers))
    crowd = calibration.crowding(servers.num_workers + config.num_servers)
    per_message = stripes * calibration.message_cpu_s * crowd
    copying, adding = calibration.copy_s_per_byte * nbytes * crowd, calibration.add_s_per_byte * nbytes * crowd
    on_node_s = local_s(cell, calibration, nbytes)
    others = servers.num_servers - bool(x)
    on_rank = x * (n - 1) if n > 1 else 0.0  # of the payload, from other workers to the server on a worker's rank
    update_s = 0.0 if config.server_role == "sum" or config.sync_every > 1 else compute.optimizer_s * nbytes / payload
    out, back = (1 - x) * worker_s, on_rank * worker_s
    own = n * y * server_s
    push = [
        (UP, out), (DOWN, back), (SERVER_DOWN, own),
        (WORKER_CPU, others * per_message + copying + (n - 1) * bool(x) * per_message),
    ]  # fmt: skip
    reply = [(DOWN, out), (UP, back), (SERVER_UP, own), (WORKER_CPU, others * per_message)]
    serve = [
        (WORKER_CPU, bool(x) * (n * x * adding + x * update_s + (n - 1) * per_message)),
        (SERVER_CPU, bool(y) * (n * y * adding + y * update_s + 2 * n * per_message)),
    ]
    push, reply = (_half_duplex(demand, calibration.duplex_factor - 1) for demand in (push, reply))
    push.append((LOCAL, on_node_s))
    reply.append((LOCAL, on_node_s))
    return _without_zeros(push), _without_zeros(serve), _without_zeros(reply)


def _without_zeros(demand: Demand) -> Demand:
    return [(resource, seconds) for resource, seconds in demand if seconds > 0]


def _half_duplex(demand: Demand, coupling: float) -> Demand:
    """Let each direction of a link spend `coupling` of its time on the other direction's bytes."""
    if coupling <= 0:
        return demand
    other = {UP: DOWN, DOWN: UP, SERVER_UP: SERVER_DOWN, SERVER_DOWN: SERVER_UP}
    found = dict(demand)
    links = sorted({*found, *(other.get(resource, resource) for resource in found)})
    return [
        (resource, found.get(resource, 0.0) + coupling * found.get(other.get(resource, -1), 0.0)) for resource in links
    ]


def _rates(cell: Cell, calibration: ClusterCalibration, servers: Servers) -> tuple[float, float]:
    """Return bytes per second of a worker's and of a server's link, the worker's within its window."""
    worker = slowest_link(cell, calibration) if servers.num_workers + cell.config.num_servers > 1 else math.inf
    if not cell.two_level:
        worker /= cell.ranks_per_node
    server = server_link(cell, calibration) if cell.config.num_servers else worker
    window = cell.config.window_bytes
    if window is not None and math.isfinite(worker):
        round_trip = 2 * calibration.latency_s + min(window, cell.config.chunk_bytes) / worker
        worker = min(worker, window / round_trip)
    return worker, server


def local_s(cell: Cell, calibration: ClusterCalibration, nbytes: float) -> float:
    """Return what the workers of one node take to add up a piece, or to hand its weights around."""
    g = cell.ranks_per_node if cell.two_level else 1
    return (g - 1) / g * nbytes / calibration.node_bytes_per_s


def exchange(
    works: list[Work], latency_s: float, norm_s: float | None, burst_s: float = 0.0, window: float = math.inf
) -> list[float]:
    """Return when the reply to each piece is at the worker, after backward began; `burst_s` as of a Link.

    `norm_s`: replies begin so long after all pieces are served; None: each as soon as its piece is. A piece is pushed
    when less than `window` bytes of those before it have not arrived yet.
    """
    free: dict[int, float] = {}
    arrivals = [0.0] * len(works)

    def run(demand: Demand, at: float) -> float:
        end = at
        for resource, seconds in demand:
            credit_s = burst_s if _is_link(resource) else 0.0
            free[resource] = max(at - credit_s, free.get(resource, 0.0)) + seconds
            end = max(end, free[resource])
        return end

    later: list[tuple[float, int, int]] = []  # when a piece (last) arrives (1) at its server, or is served (0)
    waiting: list[tuple[int, int]] = []  # places and numbers of pieces that are ready
    in_flight: deque[tuple[float, float]] = deque()  # when a piece arrives, and its bytes
    held: list[int] = []
    i, flying, opens, last = 0, 0.0, 0.0, 0.0
    while i < len(works) or waiting or later:
        while in_flight and flying >= window:
            arrived, nbytes = in_flight.popleft()
            opens, flying = max(opens, arrived), flying - nbytes
        first = waiting[0][1] if waiting else i
        begin = max(opens, works[first].ready_s) if first < len(works) else math.inf
        while i < len(works) and works[i].ready_s <= begin:
            heapq.heappush(waiting, (works[i].place, i))
            i += 1
        if waiting and (not later or begin <= later[0][0]):
            j = heapq.heappop(waiting)[1]
            arrived = run(works[j].push, max(opens, works[j].ready_s)) + latency_s
            in_flight.append((arrived, works[j].in_window))
            flying += works[j].in_window
            heapq.heappush(later, (arrived, 1, j))
            continue
        at, is_push, j = heapq.heappop(later)
        if not is_push:
            arrivals[j] = run(works[j].reply, at) + latency_s
            continue
        served = run(works[j].serve, at)
        last = max(last, served)
        if norm_s is None:
            heapq.heappush(later, (served, 0, j))
            continue
        held.append(j)
        if len(held) == len(works):
            for k in held:
                heapq.heappush(later, (last + norm_s, 0, k))
    return arrivals


def in_order_of_priority(works: list[Work]) -> list[Work]:
    """Return the pieces as a worker sends them if those that the next forward reads first overtake others."""
    waiting, sent, now, i = list[int](), list[Work](), 0.0, 0
    while len(sent) < len(works):
        while i < len(works) and (works[i].ready_s <= now or not waiting):
            now = max(now, works[i].ready_s)
            waiting.append(i)
            i += 1
        chosen = works[waiting.pop()]  # the latest layers of backward are the first of forward
        now += max((seconds for _, seconds in chosen.push), default=0.0)
        sent.append(Work(max(chosen.ready_s, sent[-1].ready_s if sent else 0.0), *_rest(chosen)))
    return sent


def _rest(work: Work) -> tuple[Demand, Demand, Demand, float, float]:
    return work.push, work.serve, work.reply, work.begin, work.end


def needed_by_layer(cell: Cell, works: list[Work], arrivals: list[float]) -> np.ndarray:
    """Return when each layer's new weights are there, in the order of forward."""
    sizes: dict[str, int] = {}
    for tensor in cell.tensors:
        sizes[tensor.layer] = sizes.get(tensor.layer, 0) + tensor.size
    ends = np.cumsum(list(sizes.values()))
    begins = ends - np.array(list(sizes.values()))
    order = np.argsort([work.begin for work in works])
    at = np.array(arrivals)[order]
    starts = np.array([works[i].begin for i in order])
    first = np.searchsorted(starts, begins + 0.5, side="right") - 1
    last = np.searchsorted(starts, ends - 0.5, side="right") - 1
    return np.array([at[a : b + 1].max() for a, b in zip(first, last, strict=True)])[::-1]
