"""The server's side: sum the workers' gradients, update the shard, reply with new weights."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from mpi4py import MPI

from strategies.base import Observed
from strategies.gradients import LossScaler, gradient_factor
from strategies.options import Options
from strategies.parameter_server.consistency import Clocks, Staleness
from strategies.parameter_server.memory import MessageBuffers
from strategies.parameter_server.norm import NormExchange
from strategies.parameter_server.plan import CLOSE_TAG, NOTHING, SETTINGS_TAG, Plan, Roles, message, wait_all
from strategies.parameter_server.progress import Progress
from strategies.parameter_server.settings import GroupSettings
from strategies.parameter_server.shard import Shard
from strategies.timeline import Timeline
from strategies.volume import Volume

KEPT_STEPS = 4  # of a timeline, of which a trace shows the last


class Server:
    """The serving half of a rank; its callbacks run on whichever thread of the rank calls MPI.

    Under BSP a chunk is updated with the workers' mean gradient and returned as soon as every worker has
    pushed it, unless the update needs the norm of the whole gradient. Under ASP and SSP each worker's gradient is
    an update of its own, scaled by 1/W, and its reply is delayed until the slowest worker is near enough.
    A server that only sums returns the mean gradient instead of weights.
    """

    def __init__(
        self, comm: MPI.Intracomm, roles: Roles, options: Options, progress: Progress, counters: Volume
    ) -> None:
        self._comm = comm
        self._roles = roles
        self._options = options
        self._progress = progress
        self._counters = counters
        self._staleness = options.staleness_bound
        self.scaler = LossScaler(options.loss_scaling)
        self.on_norm: Callable[[float], None] = lambda norm: None  # replaced by a worker half on the same rank
        self._closed: set[int] = set()  # workers
        self._seen = Staleness()
        self._idle_s: list[float] = []  # of the rank, at the first and at the last gradient

    @property
    def closed(self) -> bool:
        """Whether every worker has closed."""
        return len(self._closed) == len(self._roles.workers)

    def observe(self, observed: Observed) -> Observed:
        """Return `observed` with the staleness of gradients on this server, over all chunks, and its idle time."""
        idle_s = self._idle_s[-1] - self._idle_s[0] if self._idle_s else 0.0
        missed, lead = Counter(self._seen.missed_updates), self._seen.largest_lead
        return replace(observed, missed_updates=missed, largest_lead=lead, server_idle_s=idle_s)

    def prepare(
        self, plan: Plan, buffers: MessageBuffers, optimizer: torch.optim.Optimizer, settings: GroupSettings | None
    ) -> None:
        """Make the shard and the requests that reply, and post the receives of worker 0's weights."""
        workers, options, server = self._roles.workers, self._options, self._roles.servers.index(self._comm.rank)
        self._chunks = plan.of_server(server)
        self._buffers = buffers
        updates = optimizer if options.server_role == "update" else None
        if options.sync_every > 1:
            updates = outer_optimizer(optimizer, options)
        pushes = [buffers.pushes(worker, self._chunks) for worker in range(len(workers))]
        replies = [buffers.replies(server, number) for number in range(buffers.num_replies)]
        self._shard = Shard(plan.layout, self._chunks, updates, options, pushes, replies)
        self._clocks = [Clocks(len(workers), self._staleness, self._seen) for _ in self._chunks]
        self._sends = [
            [self._comm.Send_init(self._payload(i, w), rank, chunk.pull_tag) for w, rank in enumerate(workers)]
            for i, chunk in enumerate(self._chunks)
        ]
        self._initial = [
            self._comm.Irecv(message(self._shard.weights(i)), workers[0], chunk.push_tag)
            for i, chunk in enumerate(self._chunks)
        ]
        self._norm = NormExchange(self._comm, self._roles, self._progress, self._counters, self._norm_known)
        self._num_summed = 0
        # Per chunk and step: a receive and a reply for each worker, a sum, an update.
        self.timeline = Timeline(KEPT_STEPS * len(self._chunks) * (2 * len(workers) + 2))
        if settings:
            self._settings, self._numbers = settings, settings.vector.copy()
            self._progress.expect(
                workers[0], SETTINGS_TAG, self._numbers.view(np.uint8), self._settings_changed, before_later=True
            )

    def _payload(self, index: int, worker: int) -> list[object]:
        """Return the message that replies to a worker: empty if it reads the reply in this rank's memory."""
        is_sent = self._buffers.is_sent_to(self._roles.workers[worker])
        return message(self._shard.reply(index, self._reply_number(worker)) if is_sent else NOTHING)

    def _reply_number(self, worker: int) -> int:
        """Return which reply a worker reads: its own, or the one for all workers."""
        return worker % self._buffers.num_replies

    def distribute_weights(self) -> None:
        """Wait for worker 0's weights, start to send them to the others, and expect gradients."""
        wait_all(self._initial)
        self._shard.weights_arrived()
        self._initial = [
            self._comm.Isend(message(self._shard.weights(i)), rank, chunk.pull_tag)
            for rank in self._roles.workers[1:] for i, chunk in enumerate(self._chunks)
        ]  # fmt: skip
        for worker, rank in enumerate(self._roles.workers):
            for index, chunk in enumerate(self._chunks):
                buffer = self._shard.pushed(index, worker) if self._buffers.is_sent_from(rank) else NOTHING
                self._progress.expect(rank, chunk.push_tag, buffer, partial(self._pushed, index, worker))
            self._progress.expect(rank, CLOSE_TAG, NOTHING, partial(self._worker_closed, worker))
        self._progress.awaited += len(self._roles.workers)

    def finish_weights(self) -> None:
        """Wait until the other workers have the initial weights."""
        wait_all(self._initial)

    def _worker_closed(self, worker: int) -> None:
        self._closed.add(worker)
        self._progress.awaited -= 1
        for clocks in self._clocks:
            self._check_steps(clocks)

    def _check_steps(self, clocks: Clocks) -> None:
        """Raise RuntimeError if a worker waits for the next push of one that has closed."""
        missing = clocks.missing(self._closed) if self._closed else None
        if missing:
            raise RuntimeError(
                f"worker {missing[1]} has closed, and worker {missing[0]} takes a further step, which needs a gradient "
                f"of both: give every worker the same number of steps, or use consistency asp"
            )

    def _pushed(self, index: int, worker: int) -> None:
        """Handle a worker's gradient of one chunk."""
        self._idle_s[1:] = [self._progress.idle_s]  # the first stays
        self._record("receive", index, self._progress.found_at, worker)
        self._buffers.sync()
        self._count(self._roles.workers[worker], received=self._shard.pushed(index, worker).nbytes)
        released = self._clocks[index].push(worker)
        self._check_steps(self._clocks[index])
        if self._staleness > 0:
            self._update_alone(index, worker)
            self._reply(index, released)
        elif released:
            wait_all(self._sends[index])  # of the last step: long complete; they read what is written now
            began = time.perf_counter()
            self._shard.sum(index)
            self._record("sum", index, began)
            self._num_summed += 1
            if not self._options.needs_norm:
                self._step(index, 1.0)
                self._reply(index, released)
            elif self._num_summed % len(self._chunks) == 0:
                self._norm.exchange(self._shard.squared_norm())

    def _settings_changed(self) -> None:
        """Follow worker 0's optimizer: it sends this with no push of an earlier step in flight."""
        self._count(self._roles.workers[0], received=self._numbers.nbytes)
        self._shard.change_settings(self._settings.of_groups(self._numbers))

    def _update_alone(self, index: int, worker: int) -> None:
        """Update with one worker's gradient."""
        self._shard.take(index, worker)
        self._clocks[index].updated(worker)
        self._step(index, 1.0)

    def _norm_known(self, total: float) -> None:
        """Update with one step's gradient, given the norm of the workers' sum; skip the update if it is not finite."""
        norm = total / (len(self._roles.workers) * self.scaler.scale)
        finite = math.isfinite(norm)
        factor = gradient_factor(norm, self._options.clip_norm) / self.scaler.scale if finite else 0.0
        for index in range(len(self._chunks)):
            if finite:
                self._step(index, factor)
            self._reply(index, range(len(self._roles.workers)))
        self.scaler.update(finite)
        self.on_norm(norm)

    def _step(self, index: int, factor: float) -> None:
        began = time.perf_counter()
        self._shard.step(index, factor / len(self._roles.workers))
        self._record("update", index, began)

    def _reply(self, index: int, workers: Sequence[int]) -> None:
        """Return a chunk to workers, each of which has pushed since its last reply."""
        for worker in workers:
            began, request = time.perf_counter(), self._sends[index][worker]
            wait_all([request])
            if self._staleness > 0 or worker == 0:
                self._shard.fill_reply(index, self._reply_number(worker))
            self._clocks[index].replied(worker)
            self._buffers.sync()
            request.Start()
            self._record("reply", index, began, worker)
            self._count(self._roles.workers[worker], sent=self._shard.reply(index, self._reply_number(worker)).nbytes)

    def _record(self, kind: str, index: int, began: float, worker: int | None = None) -> None:
        """Record what was done with a chunk since `began`, and for whom."""

        def describe() -> str:
            way = {"receive": " from", "reply": " to"}.get(kind, "")
            rank = "" if worker is None else f" rank {self._roles.workers[worker]}"
            return f"chunk {self._chunks[index].index}{way}{rank}"

        self.timeline.add(kind, describe, began)

    def _count(self, rank: int, sent: int = 0, received: int = 0) -> None:
        """Count one message, unless it is from this rank to itself."""
        if rank != self._comm.rank:
            self._counters.add(sent, received, int(sent > 0), int(received > 0))

    def free(self) -> None:
        """Complete and free all requests."""
        sends = [request for requests in self._sends for request in requests]
        wait_all(sends)
        for request in sends:
            request.Free()
        self._norm.finish()


def outer_optimizer(inner: torch.optim.Optimizer, options: Options) -> torch.optim.Optimizer:
    """Return the optimizer that a server applies to the change of its workers' weights: Nesterov, as in DiLoCo.

    Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023. A learning rate
    of 1 without momentum gives the mean of the workers' weights: local SGD (Stich, 2019).
    """
    groups = [{"params": group["params"]} for group in inner.param_groups]
    momentum = options.outer_momentum
    return torch.optim.SGD(groups, lr=options.outer_learning_rate, momentum=momentum, nesterov=momentum > 0)
