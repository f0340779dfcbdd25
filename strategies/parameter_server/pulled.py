"""What a worker pulls: the servers' replies, as they arrive and as the model takes them over."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from strategies.base import torch_dtype
from strategies.buffers import host_buffer
from strategies.options import Options
from strategies.parameter_server.memory import MessageBuffers
from strategies.parameter_server.plan import NOTHING, Chunk, Plan
from strategies.parameter_server.progress import Progress
from strategies.parameter_server.wire import make_wire
from strategies.volume import Volume


class Pulled:
    """New weights, or mean gradients where servers only sum: where they arrive, and which parameters have theirs.

    `taken[i]`: whether parameter i holds what was pulled last. `step_ended` is called when a step's last reply is here.
    """

    def __init__(
        self, plan: Plan, buffers: MessageBuffers, options: Options, worker: int, rank: int, progress: Progress,
        counters: Volume, step_ended: Callable[[], None],
    ) -> None:  # fmt: skip
        self._plan, self._buffers, self._progress = plan, buffers, progress
        self._worker, self._rank = worker, rank
        self._counters = counters
        self._step_ended = step_ended
        self._parameters = plan.layout.parameters
        self._gives_gradients = options.server_role == "sum"
        compressed = options.compression != "none"
        flat = self._weights_on_server(options)
        self._reads_on_server = flat is not None
        # Whether an arriving reply calls for action: it brings a payload, or is to be copied. A rank with a GPU reads
        # its weights on the server but sends its gradients, which MPI moves only while a thread calls it.
        self.looks_for_replies = flat is None or buffers.is_sent_to(plan.roles.servers[0])
        if flat is None:
            dtype = torch.float32 if compressed else torch_dtype(options.wire_dtype)
            flat = host_buffer(plan.layout.num_elements, dtype, self._parameters[0].is_cuda)
        messages = self._messages(flat, compressed)
        # Compressed weights arrive as differences to those of the step before.
        self._wire = make_wire(
            options, messages, [chunk.size for chunk in plan.chunks], flat, adds=not self._gives_gradients
        )
        self._views = plan.layout.views(flat)
        in_place = not compressed and not self._gives_gradients
        self._is_in_place = [in_place and self._fits(parameter, flat) for parameter in self._parameters]
        self._use_views()
        self._parameters_of = plan.layout.parameters_in([(chunk.begin, chunk.end) for chunk in plan.chunks])
        self._num_chunks = [0] * len(self._parameters)  # of each parameter
        for indices in self._parameters_of:
            for index in indices:
                self._num_chunks[index] += 1
        self._in_flight = [0] * len(self._parameters)  # of each parameter: chunks whose reply is not here
        self._replies_left = len(plan.chunks)
        self.taken = [True] * len(self._parameters)

    def _weights_on_server(self, options: Options) -> Tensor | None:
        """Return the flat weights in their server's memory, if this worker may read them there and changes none.

        They are the next reply, too, which the server writes only after every worker concerned has pushed again.
        """
        whole = self._buffers.whole_reply(self._worker)
        if whole is None or self._gives_gradients or options.sync_every > 1:
            return None
        return whole.view(torch_dtype(options.wire_dtype))

    def _messages(self, flat: Tensor, compressed: bool) -> list[Tensor]:
        """Return where each chunk's reply is read (uint8); uncompressed ones that are sent arrive in `flat` itself."""
        messages: dict[int, Tensor] = {}
        for server, rank in enumerate(self._plan.roles.servers):
            chunks = self._plan.of_server(server)
            if self._buffers.is_sent_from(rank) and not compressed:
                messages |= {chunk.index: flat[chunk.begin : chunk.end].view(torch.uint8) for chunk in chunks}
            else:
                replies = self._buffers.replies(server, self._worker % self._buffers.num_replies).each
                messages |= {chunk.index: reply for chunk, reply in zip(chunks, replies, strict=True)}
        return [messages[chunk.index] for chunk in self._plan.chunks]

    @staticmethod
    def _fits(parameter: Tensor, flat: Tensor) -> bool:
        """Whether a parameter can lie in the pulled buffer, so that new weights are not copied.

        They arrive when backward needs the old ones no more: a chunk is pushed, and then replied to, when all its
        gradients are ready, and every operation of backward that reads its parameters has then run.
        """
        return parameter.dtype == flat.dtype and not parameter.is_cuda

    def _use_views(self) -> None:
        """Copy the model's weights into the buffer, and make those that lie there in place views of it."""
        for view, parameter, in_place in zip(self._views, self._parameters, self._is_in_place, strict=True):
            view.copy_(parameter.detach())
            if in_place:
                parameter.data = view

    def expect_replies(self, sent_bytes: Callable[[int], int]) -> None:
        """Be ready for every chunk's reply; a chunk's push was a message of `sent_bytes(index)`."""
        for chunk in self._plan.chunks:
            server = self._plan.roles.servers[chunk.server]
            buffer = self._wire.message(chunk.index) if self._buffers.is_sent_from(server) else NOTHING
            is_sent = server != self._rank
            moved = (sent_bytes(chunk.index), self._wire.message(chunk.index).nbytes) if is_sent else None
            self._progress.expect(server, chunk.pull_tag, buffer, partial(self._arrived, chunk, moved))

    def expect(self, index: int) -> None:
        """Note that a parameter's gradient is on its way, so that new weights will come."""
        self.taken[index] = False
        self._in_flight[index] = self._num_chunks[index]

    def take(self, index: int) -> float:
        """Let the model have a parameter's weights, or its mean gradient; return how long that waited, seconds."""
        waited_s = 0.0
        if self._in_flight[index]:
            began = time.perf_counter()
            self._progress.wait(lambda: self._in_flight[index] == 0)
            waited_s = time.perf_counter() - began
        self.taken[index] = True
        if self._gives_gradients:
            self._parameters[index].grad = self._views[index].to(self._parameters[index])
        elif not self._is_in_place[index]:
            with torch.no_grad():
                self._parameters[index].copy_(self._views[index])
        return waited_s

    def _arrived(self, chunk: Chunk, moved: tuple[int, int] | None) -> None:
        """Count a chunk that was pushed and replied to; runs on whichever thread calls MPI."""
        self._progress.awaited -= self.looks_for_replies
        self._buffers.sync()
        self._wire.unpack(chunk.index)
        if moved:
            self._counters.add(*moved, messages_sent=1, messages_received=1)
        self._replies_left -= 1
        if self._replies_left == 0:
            self._replies_left = len(self._plan.chunks)
            self._step_ended()
        for index in self._parameters_of[chunk.index]:
            self._in_flight[index] -= 1

    def keep_weights(self) -> None:
        """Copy weights that lie in a server's memory, which is about to be freed."""
        for parameter, in_place in zip(self._parameters, self._is_in_place, strict=True):
            if self._reads_on_server and in_place:
                parameter.data = parameter.data.clone()
