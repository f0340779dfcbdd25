"""The worker's side: push each chunk while backward still runs, pull what the servers made of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor, nn

from strategies.base import Group, Options, Strategy, on_gradient
from strategies.buffers import FlatLayout, as_bytes, copy_pieces, host_buffer
from strategies.parameter_server.plan import CLOSE_TAG, NORM_TAG, Chunk, Plan, Roles, message, wait_all


class ParameterServerWorker(Strategy):
    """Trains; its optimizer runs on the servers.

    A chunk leaves as soon as backward has produced its last gradient. Receives are always posted before the
    sends that cause their messages, and all requests are persistent.
    """

    def __init__(self, group: Group, options: Options, comm: MPI.Intracomm, roles: Roles) -> None:
        super().__init__(group, options)
        self._comm = comm
        self._roles = roles
        self._needs_norm = options.clip_norm is not None or options.loss_scaling
        self._last_pass = True

    @property
    def num_workers(self) -> int:
        """Ranks that train."""
        return len(self._roles.workers)

    @property
    def worker(self) -> int:
        """This rank's place among the workers."""
        return self._roles.workers.index(self._comm.rank)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Give the servers worker 0's weights, take them from there, install hooks. Collective."""
        layout = FlatLayout.of(model)
        self._plan = Plan.make(layout, len(self._roles.servers), self.options.chunk_bytes, self.options.wire_dtype)
        self._ranges = layout.ranges()
        self._parameters = layout.parameters
        self._exchange_initial_weights()
        self._allocate(pinned=self._parameters[0].is_cuda)
        for index, parameter in enumerate(self._parameters):
            on_gradient(parameter, partial(self._gradient_ready, index))
        self._watch_gradients(model)
        self._begin_step()
        return model

    def _exchange_initial_weights(self) -> None:
        """In fp32 whatever the wire dtype: every run starts from exactly the same weights."""
        flat = torch.cat([p.detach().cpu().reshape(-1) for p in self._parameters])
        for chunk in self._plan.chunks:
            piece = message(as_bytes(flat[chunk.begin : chunk.end]))
            server = self._roles.servers[chunk.server]
            if self.worker == 0:
                self._comm.Send(piece, dest=server, tag=chunk.push_tag)
            else:
                self._comm.Recv(piece, source=server, tag=chunk.pull_tag)
        with torch.no_grad():
            copy_pieces(self._parameters, self._views(flat))

    def _allocate(self, pinned: bool) -> None:
        num_elements = self._plan.layout.num_elements
        self._push_buffer = host_buffer(num_elements, self.options.wire_dtype, pinned)
        self._pull_buffer = host_buffer(num_elements, self.options.wire_dtype, pinned)
        self._push_views = self._views(self._push_buffer)
        self._pull_views = self._views(self._pull_buffer)
        chunks = self._plan.chunks
        self._pushes = [self._comm.Send_init(*self._end_of(c, self._push_buffer), c.push_tag) for c in chunks]
        self._pulls = [self._comm.Recv_init(*self._end_of(c, self._pull_buffer), c.pull_tag) for c in chunks]
        pieces: list[list[int]] = [[] for _ in self._parameters]
        for chunk in chunks:
            for index, _ in self._plan.layout.overlapping(chunk.begin, chunk.end):
                pieces[index].append(chunk.index)
        self._chunks_of_parameter = pieces
        self._pieces_of_chunk = [sum(c in p for p in pieces) for c in range(len(chunks))]
        self._norm = np.zeros(1)
        server = self._roles.servers[0]
        self._norm_request = self._comm.Recv_init(message(self._norm.view(np.uint8)), server, NORM_TAG)

    def _views(self, flat: Tensor) -> list[Tensor]:
        pairs = zip(self._parameters, self._ranges, strict=True)
        return [flat[begin:end].view(parameter.shape) for parameter, (begin, end) in pairs]

    def _end_of(self, chunk: Chunk, buffer: Tensor) -> tuple[list[object], int]:
        """The chunk's part of a buffer, and the rank it is exchanged with."""
        return message(as_bytes(buffer[chunk.begin : chunk.end])), self._roles.servers[chunk.server]

    def _begin_step(self) -> None:
        self._awaited = list(self._pieces_of_chunk)
        self._ready = [False] * len(self._parameters)
        MPI.Prequest.Startall(self._pulls)
        if self._needs_norm:
            self._norm_request.Start()

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Only the gradients of a step's last pass are complete, and pushed."""
        self._last_pass = last
        yield

    def _gradient_ready(self, index: int, parameter: Tensor) -> None:
        """Copy a finished gradient to the wire buffer and push every chunk it completes."""
        if not self._last_pass:
            return
        self._push_views[index].copy_(parameter.grad)  # type: ignore[arg-type]  # a hook's gradient is never None
        parameter.grad = None
        self._mark_ready(index)

    def _mark_ready(self, index: int) -> None:
        self._ready[index] = True
        for chunk in self._chunks_of_parameter[index]:
            self._awaited[chunk] -= 1
            if self._awaited[chunk] == 0:
                self._pushes[chunk].Start()

    def synchronize(self) -> None:
        """Push zeros for parameters that the loss did not reach, then wait for every push and pull."""
        for index, ready in enumerate(self._ready):
            if not ready:
                self._push_views[index].zero_()
                self._mark_ready(index)
        norm = [self._norm_request] if self._needs_norm else []
        wait_all([*self._pushes, *self._pulls, *norm])
        self._count()
        self._communication_ended()

    def _count(self) -> None:
        """Every chunk went out and came back once in this step."""
        nbytes = self._push_buffer.nbytes
        self.counters.add(
            sent=nbytes, received=nbytes, messages_sent=len(self._pushes), messages_received=len(self._pulls)
        )
        if self._needs_norm:
            self.counters.add(received=self._norm.nbytes, messages_received=1)

    def step(self) -> None:
        """Take over the weights that the servers updated."""
        with torch.no_grad():
            copy_pieces(self._parameters, self._pull_views)
        if self._needs_norm:
            self.scaler.update(math.isfinite(self._norm[0]))
        self._begin_step()

    def close(self) -> None:
        """Tell every server that this worker is done, and take back the receives that wait. Collective."""
        for server in self._roles.servers:
            self._comm.Send(message(np.empty(0, np.uint8)), dest=server, tag=CLOSE_TAG)
        waiting = [*self._pulls, *([self._norm_request] if self._needs_norm else [])]
        for request in waiting:
            request.Cancel()
        wait_all(waiting)
        for request in [*self._pushes, *self._pulls, self._norm_request]:
            request.Free()
        self._comm.Free()
