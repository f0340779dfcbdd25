"""What a worker pushes: its gradients, each chunk as soon as backward has produced its last one."""

from __future__ import annotations

import math

import torch
from mpi4py import MPI
from torch import Tensor

from strategies.base import torch_dtype
from strategies.buffers import Readiness
from strategies.options import Options
from strategies.parameter_server.memory import MessageBuffers
from strategies.parameter_server.outbox import Outbox, sending_order
from strategies.parameter_server.plan import NOTHING, Chunk, Plan, message, wait_all
from strategies.parameter_server.progress import Progress
from strategies.parameter_server.wire import make_wire


class Pushed:
    """The gradients of one step in the wire format, one persistent send request per chunk.

    `write` is called on the main thread, what follows from it on whichever thread calls MPI. `looks_for_replies`:
    whether a reply calls for action when it arrives, so that a thread must look for it.
    """

    def __init__(
        self, comm: MPI.Intracomm, plan: Plan, buffers: MessageBuffers, options: Options, worker: int,
        progress: Progress, looks_for_replies: bool,
    ) -> None:  # fmt: skip
        self._comm, self._plan, self._progress = comm, plan, progress
        self._buffers = buffers
        self._looks_for_replies = looks_for_replies
        chunks, num_elements = plan.chunks, plan.layout.num_elements
        messages = buffers.pushes(worker, chunks)
        compressed = options.compression != "none"
        flat = torch.zeros(num_elements) if compressed else messages.memory.view(torch_dtype(options.wire_dtype))
        self._wire = make_wire(options, messages.each, [chunk.size for chunk in chunks], flat)
        self._views = plan.layout.views(flat)
        self._readiness = Readiness(plan.layout, [(chunk.begin, chunk.end) for chunk in chunks])
        self._counts_arrivals = options.window_bytes is not None
        self._requests = [self._make_request(chunk) for chunk in chunks]
        bytes_per_element = sum(map(self.nbytes, range(len(chunks)))) / num_elements
        window = (options.window_bytes or math.inf) / bytes_per_element
        order = sending_order(chunks, options.schedule, worker, len(plan.roles.servers))
        self._outbox = Outbox(chunks, order, window, self._send)

    def _make_request(self, chunk: Chunk) -> MPI.Prequest:
        """Return the request that sends a chunk: a synchronous send completes on arrival, which a window counts."""
        make = self._comm.Ssend_init if self._counts_arrivals else self._comm.Send_init
        server = self._plan.roles.servers[chunk.server]
        gradient = self._wire.message(chunk.index) if self._buffers.is_sent_to(server) else NOTHING
        request = make(message(gradient), server, chunk.push_tag)
        assert isinstance(request, MPI.Prequest)
        return request

    def nbytes(self, chunk: int) -> int:
        """Length of a chunk's message, bytes."""
        return self._wire.message(chunk).nbytes

    def write(self, index: int, gradient: Tensor) -> None:
        """Encode the gradient of the parameter with this index, and send every chunk that it completes."""
        self._wire.put(self._views[index], gradient)
        complete = self._readiness.complete(index)
        if complete:
            self._progress.post(lambda: self._outbox.add(complete))

    def missing(self) -> list[int]:
        """Indices of the parameters whose gradient has not been written in this step."""
        return self._readiness.missing()

    def end_step(self) -> None:
        """Expect every parameter's gradient anew."""
        self._readiness.reset()

    def _send(self, chunk: Chunk) -> None:
        request = self._requests[chunk.index]
        self._progress.complete(request)  # the last step's push: long complete, since its reply has arrived
        self._wire.pack(chunk.index)
        self._buffers.sync()
        request.Start()
        self._progress.awaited += self._looks_for_replies
        if self._counts_arrivals:
            self._progress.watch(request, lambda: self._outbox.arrived(chunk))

    def free(self) -> None:
        """Complete and free all requests."""
        wait_all(self._requests)
        for request in self._requests:
            request.Free()
