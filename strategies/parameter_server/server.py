"""The server's side: sum what the workers push, update its shard, send it back."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor, nn

from strategies.base import Group, Options, Strategy, gradient_factor
from strategies.buffers import FlatLayout, as_bytes
from strategies.parameter_server.plan import CLOSE_TAG, NAP_S, NORM_TAG, Chunk, Plan, Roles, message, wait_all


class ParameterServer(Strategy):
    """Holds one shard in fp32: master weights, the sum of the gradients, and the optimizer's state.

    A chunk is updated and returned as soon as every worker has pushed it, unless the update needs the norm
    of the whole gradient. Sums are in fp32 and in the workers' order, so that equal runs end bitwise equal.
    """

    is_server = True

    def __init__(self, group: Group, options: Options, comm: MPI.Intracomm, roles: Roles) -> None:
        super().__init__(group, options)
        self._comm = comm
        self._roles = roles
        self._server = roles.servers.index(comm.rank)
        self._needs_norm = options.clip_norm is not None or options.loss_scaling

    @property
    def num_workers(self) -> int:
        """Ranks that train."""
        return len(self._roles.workers)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Take worker 0's weights for this shard and pass them on. Collective.

        Only the shapes of `model` and the settings of `optimizer` count: the model may be on the meta device.
        """
        layout = FlatLayout.of(model)
        plan = Plan.make(layout, len(self._roles.servers), self.options.chunk_bytes, self.options.wire_dtype)
        self._chunks = plan.of_server(self._server)
        self._first = min((c.begin for c in self._chunks), default=0)
        size = max((c.end for c in self._chunks), default=0) - self._first
        self._weights = torch.empty(size)
        self._gradient = torch.empty(size)
        self._pushed = torch.empty(self.num_workers, size, dtype=self.options.wire_dtype)
        fp32 = self.options.wire_dtype == torch.float32
        self._returned = self._weights if fp32 else torch.empty(size, dtype=self.options.wire_dtype)
        self._exchange_initial_weights()
        self._optimizers = [self._chunk_optimizer(optimizer, layout, chunk) for chunk in self._chunks]
        self._post()
        return model

    def _exchange_initial_weights(self) -> None:
        workers = self._roles.workers
        for chunk in self._chunks:
            self._comm.Recv(self._bytes(self._weights, chunk), source=workers[0], tag=chunk.push_tag)
        for worker in workers[1:]:
            for chunk in self._chunks:
                self._comm.Send(self._bytes(self._weights, chunk), dest=worker, tag=chunk.pull_tag)

    def _chunk_optimizer(
        self, optimizer: torch.optim.Optimizer, layout: FlatLayout, chunk: Chunk
    ) -> torch.optim.Optimizer:
        """The same optimizer with the same groups, over the pieces of parameters inside one chunk."""
        pieces = dict(layout.overlapping(chunk.begin, chunk.end))
        index_of = {parameter: index for index, parameter in enumerate(layout.parameters)}
        groups = []
        for group in optimizer.param_groups:
            ranges = [pieces[index_of[p]] for p in group["params"] if index_of[p] in pieces]
            if ranges:
                groups.append({**group, "params": [self._piece(*r) for r in ranges]})
        return type(optimizer)(groups)  # type: ignore[call-arg]  # every torch.optim class has defaults

    def _piece(self, begin: int, end: int) -> nn.Parameter:
        span = slice(begin - self._first, end - self._first)
        piece = nn.Parameter(self._weights[span])
        piece.grad = self._gradient[span]
        return piece

    def _post(self) -> None:
        """Make one receive and one send per worker and chunk, and start all receives."""
        workers, chunks = self._roles.workers, self._chunks
        self._receives = [
            [self._comm.Recv_init(self._bytes(self._pushed[w], c), rank, c.push_tag) for w, rank in enumerate(workers)]
            for c in chunks
        ]
        self._sends = [
            [self._comm.Send_init(self._bytes(self._returned, c), rank, c.pull_tag) for rank in workers] for c in chunks
        ]
        self._closing = [self._comm.Irecv(message(np.empty(0, np.uint8)), rank, CLOSE_TAG) for rank in workers]
        for requests in self._receives:
            MPI.Prequest.Startall(requests)

    def _bytes(self, buffer: Tensor, chunk: Chunk) -> list[object]:
        return message(as_bytes(buffer[self._span(chunk)]))

    def _span(self, chunk: Chunk) -> slice:
        return slice(chunk.begin - self._first, chunk.end - self._first)

    def serve(self) -> None:
        """Aggregate, update and return chunks until the last worker closes."""
        awaited = [self.num_workers] * len(self._chunks)
        summed: list[int] = []
        receives = [request for requests in self._receives for request in requests]
        while not MPI.Request.Testall(self._closing):
            arrived = MPI.Request.Testsome(receives)
            if not arrived:
                time.sleep(NAP_S)
                continue
            for request in arrived:
                chunk = request // self.num_workers
                awaited[chunk] -= 1
                if awaited[chunk] == 0:
                    awaited[chunk] = self.num_workers
                    self._aggregate(chunk)
                    summed.append(chunk)
            if not self._needs_norm:
                self._update(summed, 1.0)
                summed.clear()
            elif len(summed) == len(self._chunks):
                self._update_by_norm(summed)
                summed.clear()
        self._withdraw(receives)

    def _aggregate(self, index: int) -> None:
        """Add the workers' gradients of one chunk in fp32, and be ready for the next step's."""
        span = self._span(self._chunks[index])
        total = self._gradient[span]
        total.copy_(self._pushed[0, span])
        for gradient in self._pushed[1:, span]:
            total.add_(gradient)
        self.counters.add(received=self.num_workers * self._pushed[0, span].nbytes, messages_received=self.num_workers)
        MPI.Prequest.Startall(self._receives[index])

    def _update_by_norm(self, chunks: Sequence[int]) -> None:
        """Apply one step's gradient once its global norm is known, or skip it where it is not finite."""
        norm = self._global_norm()
        finite = math.isfinite(norm)
        factor = gradient_factor(norm, self.options.clip_norm) / self.scaler.scale if finite else None
        self._update(chunks, factor)
        self.scaler.update(finite)

    def _update(self, chunks: Sequence[int], factor: float | None) -> None:
        """Step each chunk's optimizer with factor × the mean gradient (None: not at all), and return it."""
        for index in chunks:
            span = self._span(self._chunks[index])
            wait_all(self._sends[index])  # the previous step's: long done, every worker has answered to it
            if factor is not None:
                self._gradient[span] *= factor / self.num_workers
                self._optimizers[index].step()
            if self._returned is not self._weights:
                self._returned[span] = self._weights[span]
            MPI.Prequest.Startall(self._sends[index])
            self.counters.add(sent=self.num_workers * self._returned[span].nbytes, messages_sent=self.num_workers)

    def _global_norm(self) -> float:
        """Return the L2 norm of the unscaled mean gradient over all servers, and tell every worker.

        The first server adds the squares in the servers' order and answers all. Collective over servers.
        """
        square = np.array([float(torch.linalg.vector_norm(self._gradient, dtype=torch.float64)) ** 2])
        first, *others = self._roles.servers
        if self._comm.rank != first:
            self._send(square, first)
            self._receive(square, first)
            return float(square[0])
        for server in others:
            part = np.zeros(1)
            self._receive(part, server)
            square += part
        norm = np.sqrt(square) / (self.num_workers * self.scaler.scale)
        for rank in (*others, *self._roles.workers):
            self._send(norm, rank)
        return float(norm[0])

    def _send(self, value: np.ndarray, rank: int) -> None:
        self._comm.Send(message(value.view(np.uint8)), dest=rank, tag=NORM_TAG)
        self.counters.add(sent=value.nbytes, messages_sent=1)

    def _receive(self, value: np.ndarray, rank: int) -> None:
        wait_all([self._comm.Irecv(message(value.view(np.uint8)), source=rank, tag=NORM_TAG)])
        self.counters.add(received=value.nbytes, messages_received=1)

    def _withdraw(self, receives: Sequence[MPI.Prequest]) -> None:
        """Take back the receives that no worker will answer any more."""
        sends = [request for requests in self._sends for request in requests]
        wait_all(sends)
        for request in receives:
            request.Cancel()
        wait_all(receives)
        for request in [*receives, *sends]:
            request.Free()

    def close(self) -> None:
        """Give the communicator back. Collective."""
        self._comm.Free()

    def synchronize(self) -> None:
        """Servers have no gradient of their own."""
        raise RuntimeError("a server calls serve()")

    def step(self) -> None:
        """Servers update inside serve()."""
        raise RuntimeError("a server calls serve()")
