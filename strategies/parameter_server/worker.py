"""The worker's side: push each chunk while backward still runs, pull new weights before forward needs them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor, nn

from strategies.base import Observed, Strategy
from strategies.buffers import as_bytes
from strategies.gradients import apply_mean_gradient, mark_stepped, on_gradient
from strategies.group import Group
from strategies.newest import NewestWeights
from strategies.options import Options
from strategies.parameter_server.agreement import agree
from strategies.parameter_server.memory import MessageBuffers, NodeMemory
from strategies.parameter_server.plan import (
    CLOSE_TAG,
    NORM_TAG,
    NOTHING,
    SETTINGS_TAG,
    Plan,
    Roles,
    message,
    wait_all,
)  # fmt: skip
from strategies.parameter_server.progress import Progress
from strategies.parameter_server.pulled import Pulled
from strategies.parameter_server.pushed import Pushed
from strategies.parameter_server.server import Server
from strategies.timeline import KeepsTimeline, Span


class ParameterServerWorker(Strategy, KeepsTimeline):
    """Trains; its optimizer runs on the servers, one of which may share its rank, or here if servers only sum.

    A chunk is pushed as soon as backward has produced its last gradient, and new weights are taken over when the next
    forward reaches the module that reads them. While the main thread computes, a second thread calls MPI; it sleeps
    when no message can come. While the main thread can only wait, it calls MPI itself.
    """

    timeline_title = "server"

    def __init__(
        self, group: Group, options: Options, comm: MPI.Intracomm, roles: Roles,
        memory_of_node: type[NodeMemory] = NodeMemory,
    ) -> None:  # fmt: skip
        super().__init__(group, options)
        self._comm = comm
        self._roles = roles
        self._memory_of_node = memory_of_node
        self._worker = roles.workers.index(comm.rank)
        self._progress = Progress(comm, options.poll_s)
        self._server: Server | None = None
        if comm.rank in roles.servers:
            self._server = Server(comm, roles, options, self._progress, self.counters)
            self._server.on_norm = self._norm_known_here
        self._gives_gradients = options.server_role == "sum"
        self._last_pass = True
        self._pushing = False  # whether this step has pushed anything
        self._sent_close = False
        self.wait_in_forward_s = 0.0
        self._norm = np.zeros(1)
        self._norm_known = False
        self._sending_settings: list[MPI.Request] = []

    @property
    def num_workers(self) -> int:
        """Ranks that train."""
        return len(self._roles.workers)

    @property
    def worker(self) -> int:
        """This rank's index among the workers."""
        return self._worker

    def observe(self) -> Observed:
        """Add the forward's wait, the balance of the shards, and the staleness on this rank's server."""
        observed = replace(
            super().observe(),
            wait_in_forward_s=self.wait_in_forward_s,
            shard_imbalance=self._plan.imbalance,
            shares_memory=self._buffers.shares,
        )
        return self._server.observe(observed) if self._server else observed

    def start_timeline(self) -> None:
        """Record what the server on this rank does, if there is one."""
        if self._server:
            self._server.timeline.start()

    def stop_timeline(self) -> dict[str, list[Span]]:
        """Return its latest receives, sums, updates and replies."""
        return self._server.timeline.by_kind() if self._server else {}

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Send worker 0's weights to the servers, receive them from there, install hooks. Collective."""
        self._optimizer = optimizer
        self._plan = Plan.of(model, self._roles, self.options)
        self._parameters = self._plan.layout.parameters
        self._settings = agree(self.group, self._plan.layout, model, optimizer, self.options)
        self._buffers = MessageBuffers(
            self._comm, self._plan, self.options, self._memory_of_node, pinned=self._parameters[0].is_cuda
        )
        if self._server:
            self._server.prepare(self._plan, self._buffers, optimizer, self._settings)
        self._exchange_initial_weights()
        self._pulled = Pulled(
            self._plan, self._buffers, self.options, self.worker, self._comm.rank, self._progress, self.counters,
            self._communication_ended,
        )  # fmt: skip
        self._pushed = Pushed(
            self._comm, self._plan, self._buffers, self.options, self.worker, self._progress,
            self._pulled.looks_for_replies,
        )  # fmt: skip
        self._pulled.expect_replies(self._pushed.nbytes)
        if self.options.needs_norm and self._server is None:  # a server on the same rank receives it for both
            self._progress.expect(self._roles.servers[0], NORM_TAG, self._norm.view(np.uint8), self._norm_arrived)
        self._install_hooks(model)
        self._thread = threading.Thread(target=self._progress.run, args=(self._is_done,), daemon=True)
        return model

    def _exchange_initial_weights(self) -> None:
        """Give every rank worker 0's weights: in fp32 whatever the wire dtype, so that all start from the same ones."""
        flat = torch.cat([p.detach().cpu().float().reshape(-1) for p in self._parameters])
        send, receive = self._comm.Isend, self._comm.Irecv
        requests = []
        for chunk in self._plan.chunks:
            piece, server = message(as_bytes(flat[chunk.begin : chunk.end])), self._roles.servers[chunk.server]
            first = self.worker == 0
            requests.append(send(piece, server, chunk.push_tag) if first else receive(piece, server, chunk.pull_tag))
        if self._server:
            self._server.distribute_weights()
        wait_all(requests)
        if self._server:
            self._server.finish_weights()
        with torch.no_grad():
            for parameter, view in zip(self._parameters, self._plan.layout.views(flat), strict=True):
                parameter.copy_(view)

    def _install_hooks(self, model: nn.Module) -> None:
        self._hooks += [
            on_gradient(parameter, partial(self._gradient_ready, index))
            for index, parameter in enumerate(self._parameters)
        ]
        self._newest = NewestWeights(model, self._parameters, self._before_forward)
        self._requires_grad = {parameter: parameter.requires_grad for parameter in model.parameters()}

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Return the context of one pass: only the gradients of a step's last pass are complete, and pushed."""
        self._start_thread()
        self._last_pass = last
        yield

    def _start_thread(self) -> None:
        """Start the second thread. Not before training: until then the main thread may call MPI for the harness."""
        if self._thread.ident is None:
            self._thread.start()

    def _gradient_ready(self, index: int, parameter: Tensor) -> None:
        if self._first_gradient_at is None:
            self._first_gradient_at = time.perf_counter()
        if not self._last_pass:
            return
        assert parameter.grad is not None  # in a hook it never is
        self._push(index, parameter.grad)
        parameter.grad = None

    def _push(self, index: int, gradient: Tensor) -> None:
        """Write a parameter's gradient, whose last weights are taken over first if no forward has read them."""
        if not self._pushing:
            self._begin_push()
        self._take(index)
        self._pulled.expect(index)
        self._pushed.write(index, gradient)

    def _begin_push(self) -> None:
        """Let servers follow the optimizer's settings if they have changed: worker 0's count for all workers.

        What was pushed before must be updated with the settings of then, so that all replies are awaited first.
        """
        self._pushing = True
        if any(parameter.requires_grad != before for parameter, before in self._requires_grad.items()):
            raise RuntimeError("requires_grad of a parameter has changed since prepare(): servers know those of then")
        if self._settings and self._settings.changed() and self.worker == 0:
            self.settle()
            self._progress.post(self._send_settings)

    def synchronize(self) -> None:
        """Push zeros for parameters that the loss does not depend on; wait for the norm or the mean, if need be."""
        for index in self._pushed.missing():
            self._push(index, torch.zeros(()))
        self._pushed.end_step()
        self._pushing = False
        if self.options.needs_norm:
            self._progress.wait(lambda: self._norm_known)
            self._norm_known = False
            self.scaler.update(math.isfinite(self._norm[0]))
        if self._gives_gradients:
            self.settle()

    def step(self) -> None:
        """Apply the mean gradient; or, where servers update, leave their weights to be taken by the next forward."""
        if self._gives_gradients:
            apply_mean_gradient(self._parameters, self._optimizer.step, self.options.clip_norm, self.scaler)
            self._optimizer.zero_grad()
        else:
            mark_stepped(self._optimizer)
        self.wait_in_forward_s = 0.0

    def _before_forward(self, indices: Sequence[int]) -> None:
        for index in indices:
            self._take(index)

    def _take(self, index: int) -> None:
        """Take over a parameter's new weights, or its mean gradient; wait for them if need be."""
        if not self._pulled.taken[index]:
            waited_s = self._pulled.take(index)
            if not self._gives_gradients:
                self.wait_in_forward_s += waited_s

    def settle(self) -> None:
        """Wait until the model holds the weights of all steps so far."""
        self._before_forward(range(len(self._parameters)))

    def close(self) -> None:
        """Take over the last weights, tell every server that this worker is done, serve until all are. Collective."""
        self._start_thread()
        self.settle()
        self._progress.post(self._send_close)
        self._progress.wake()
        self._thread.join()
        self._pulled.keep_weights()
        super().close()
        self._newest.remove()
        wait_all(self._sending_settings)
        if self._server:
            self._server.free()
        self._pushed.free()
        self._progress.cancel()
        self._buffers.free()
        self._comm.Free()

    # Below: called on whichever thread calls MPI.

    def _send_settings(self) -> None:
        assert self._settings is not None
        wait_all(self._sending_settings)
        numbers = self._settings.vector.view(np.uint8)
        self._sending_settings = [
            self._comm.Isend(message(numbers), server, SETTINGS_TAG) for server in self._roles.servers
        ]
        num_sent = sum(server != self._comm.rank for server in self._roles.servers)
        self.counters.add(sent=num_sent * numbers.nbytes, messages_sent=num_sent)

    def _norm_arrived(self) -> None:
        self.counters.add(received=self._norm.nbytes, messages_received=1)
        self._norm_known = True

    def _norm_known_here(self, norm: float) -> None:
        self._norm[0] = norm
        self._norm_known = True

    def _send_close(self) -> None:
        wait_all([self._comm.Isend(message(NOTHING), server, CLOSE_TAG) for server in self._roles.servers])
        self._sent_close = True

    def _is_done(self) -> bool:
        return self._sent_close and (self._server is None or self._server.closed)
