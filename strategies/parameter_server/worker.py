"""The worker's side: push each chunk while backward still runs, pull what the servers made of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor, nn

from strategies.base import Group, Staleness, Strategy, apply_mean_gradient, on_gradient, torch_dtype
from strategies.buffers import as_bytes, host_buffer
from strategies.options import Options
from strategies.parameter_server.memory import Mailboxes, NodeMemory
from strategies.parameter_server.outbox import Outbox, sending_order
from strategies.parameter_server.plan import CLOSE_TAG, NORM_TAG, NOTHING, Chunk, Plan, Roles, message, wait_all
from strategies.parameter_server.progress import Progress
from strategies.parameter_server.server import Server
from strategies.parameter_server.wire import make_wire


class ParameterServerWorker(Strategy):
    """Trains; its optimizer runs on the servers, one of which may share its rank, or here if servers only sum.

    A chunk leaves as soon as backward has produced its last gradient, and the new weights are taken when the
    next forward reaches the module that needs them. Messages are moved by a thread that sleeps when it has nothing to
    do, for the main one computes; while that can but wait, by itself.
    """

    def __init__(
        self, group: Group, options: Options, comm: MPI.Intracomm, roles: Roles,
        memory_of_node: type[NodeMemory] = NodeMemory,
    ) -> None:  # fmt: skip
        super().__init__(group, options)
        self._comm = comm
        self._roles = roles
        self._memory_of_node = memory_of_node
        self._progress = Progress(comm, options.poll_s)
        self._server: Server | None = None
        if comm.rank in roles.servers:
            self._server = Server(comm, roles, options, self._progress, self.counters)
            self._server.on_norm = self._norm_known_here
        self._returns_gradients = options.server_role == "sum"
        self._last_pass = True
        self._said_goodbye = False
        self._wait_in_forward_s = 0.0
        self._norm = np.zeros(1)

    @property
    def num_workers(self) -> int:
        """Ranks that train."""
        return len(self._roles.workers)

    @property
    def worker(self) -> int:
        """This rank's place among the workers."""
        return self._roles.workers.index(self._comm.rank)

    @property
    def wait_in_forward_s(self) -> float:
        """How long this step's forward has waited for weights, seconds."""
        return self._wait_in_forward_s

    @property
    def shard_imbalance(self) -> float:
        """λ of the plan."""
        return self._plan.imbalance

    @property
    def shares_memory(self) -> bool:
        """Whether some messages of this rank lie where their receiver reads them, and are not sent."""
        return self._mail.shares

    def staleness(self) -> Staleness:
        """How stale gradients have been on the server of this rank."""
        return self._server.staleness() if self._server else Staleness()

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Give the servers worker 0's weights, take them from there, install hooks. Collective."""
        self._plan = Plan.of(model, self._roles, self.options)
        self._parameters = self._plan.layout.parameters
        self._optimizer = optimizer
        pinned = self._parameters[0].is_cuda
        self._mail = Mailboxes(self._comm, self._plan, self.options, self._memory_of_node, pinned)
        if self._server:
            self._server.prepare(self._plan, self._mail, optimizer)
        self._exchange_initial_weights()
        self._allocate(pinned)
        self._keep_books()
        self._install_hooks(model)
        self._thread = threading.Thread(target=self._progress.run, args=(self._is_done,), daemon=True)
        return model

    def _exchange_initial_weights(self) -> None:
        """In fp32 whatever the wire dtype: every run starts from exactly the same weights."""
        flat = torch.cat([p.detach().cpu().reshape(-1) for p in self._parameters])
        send, receive = self._comm.Isend, self._comm.Irecv
        requests = []
        for chunk in self._plan.chunks:
            piece, server = message(as_bytes(flat[chunk.begin : chunk.end])), self._roles.servers[chunk.server]
            first = self.worker == 0
            requests.append(send(piece, server, chunk.push_tag) if first else receive(piece, server, chunk.pull_tag))
        if self._server:
            self._server.pass_on_weights()
        wait_all(requests)
        if self._server:
            self._server.finish_weights()
        with torch.no_grad():
            for parameter, view in zip(self._parameters, self._views(flat), strict=True):
                parameter.copy_(view)

    def _allocate(self, pinned: bool) -> None:
        """Make buffers, a request to push with for every chunk, and know what is to come back."""
        chunks, num_elements = self._plan.chunks, self._plan.layout.num_elements
        sizes, compressed = [chunk.size for chunk in chunks], self.options.compression != "none"
        out = self._mail.pushes(self.worker, chunks)
        pushed = torch.zeros(num_elements) if compressed else out.memory.view(torch_dtype(self.options.wire_dtype))
        self._out = make_wire(self.options, out.each, sizes, pushed)
        pulled = self._weights_on_server()
        # Whether chunks travel or are fetched, for which a thread must look. A rank with a GPU sends its gradients
        # even where it reads its weights on the server.
        self._must_look = pulled is None or self._mail.travels_to(self._roles.servers[0])
        if pulled is None:
            pulled = host_buffer(
                num_elements, torch.float32 if compressed else torch_dtype(self.options.wire_dtype), pinned
            )
        self._in = make_wire(self.options, self._answers(pulled), sizes, pulled, adds=not self._returns_gradients)
        self._push_views, self._pull_views = self._views(pushed), self._views(pulled)
        self._is_in_place = [self._in_place(parameter) for parameter in self._parameters]
        for view, parameter, in_place in zip(self._pull_views, self._parameters, self._is_in_place, strict=True):
            view.copy_(parameter.detach())  # compressed weights arrive as changes of these
            if in_place:
                parameter.data = view
        self._pushes = [self._push_request(chunk) for chunk in chunks]
        for chunk in chunks:
            server = self._roles.servers[chunk.server]
            buffer = self._in.message(chunk.index) if self._mail.travels_from(server) else NOTHING
            self._progress.expect(server, chunk.pull_tag, buffer, partial(self._chunk_pulled, chunk))
        if self.options.needs_norm and self._server is None:  # a server on the same rank receives it for both
            self._progress.expect(self._roles.servers[0], NORM_TAG, self._norm.view(np.uint8), self._norm_arrived)
        bytes_per_element = sum(self._out.message(c.index).nbytes for c in chunks) / num_elements
        window = (self.options.window_bytes or math.inf) / bytes_per_element
        places = sending_order(chunks, self.options.schedule, self.worker, len(self._roles.servers))
        self._outbox = Outbox(chunks, places, window, self._send)

    def _weights_on_server(self) -> Tensor | None:
        """The new weights where their server has them, if this worker may read them there, and changes none itself.

        They are its next answer only after every worker they are for has pushed again.
        """
        whole = self._mail.all_answers(self.worker)
        if whole is None or self._returns_gradients or self.options.sync_every > 1:
            return None
        return whole.view(torch_dtype(self.options.wire_dtype))

    def _answers(self, pulled: Tensor) -> list[Tensor]:
        """Where each chunk's answer can be read; numbers that travel arrive where they are wanted."""
        messages: dict[int, Tensor] = {}
        for server, rank in enumerate(self._roles.servers):
            chunks = self._plan.of_server(server)
            if self._mail.travels_from(rank) and self.options.compression == "none":
                messages |= {chunk.index: pulled[chunk.begin : chunk.end].view(torch.uint8) for chunk in chunks}
            else:
                answers = self._mail.answers(server, self.worker % self._mail.answers_each).each
                messages |= {chunk.index: answer for chunk, answer in zip(chunks, answers, strict=True)}
        return [messages[chunk.index] for chunk in self._plan.chunks]

    def _push_request(self, chunk: Chunk) -> MPI.Prequest:
        """A synchronous send completes when its receiver has taken it: that is what a window can count."""
        make = self._comm.Send_init if self.options.window_bytes is None else self._comm.Ssend_init
        server = self._roles.servers[chunk.server]
        gradient = self._out.message(chunk.index) if self._mail.travels_to(server) else NOTHING
        request = make(message(gradient), server, chunk.push_tag)
        assert isinstance(request, MPI.Prequest)
        return request

    def _keep_books(self) -> None:
        """Know which parameters and chunks overlap, and how far each of them is in a step."""
        chunks, layout = self._plan.chunks, self._plan.layout
        self._parameters_of = [[index for index, _ in layout.overlapping(c.begin, c.end)] for c in chunks]
        self._chunks_of: list[list[int]] = [[] for _ in self._parameters]
        for chunk, indices in zip(chunks, self._parameters_of, strict=True):
            for index in indices:
                self._chunks_of[index].append(chunk.index)
        self._begin_step()
        self._unpulled = [0] * len(self._parameters)  # of each parameter: chunks under way
        self._taken = [True] * len(self._parameters)
        self._chunks_left = len(chunks)
        self._norm_known = False

    def _views(self, flat: Tensor) -> list[Tensor]:
        pairs = zip(self._parameters, self._plan.layout.ranges(), strict=True)
        return [flat[begin:end].view(parameter.shape) for parameter, (begin, end) in pairs]

    def _install_hooks(self, model: nn.Module) -> None:
        index_of = {parameter: index for index, parameter in enumerate(self._parameters)}
        for parameter, index in index_of.items():
            on_gradient(parameter, partial(self._gradient_ready, index))
        for module in model.modules():
            needed = [index_of[p] for p in module.parameters(recurse=False)]
            if needed:
                module.register_forward_pre_hook(partial(self._before_forward, needed))

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Only the gradients of a step's last pass are complete, and pushed."""
        self._start_thread()
        self._last_pass = last
        yield

    def _start_thread(self) -> None:
        """Not before: until then this thread may be inside MPI on the harness's behalf."""
        if self._thread.ident is None:
            self._thread.start()

    def _gradient_ready(self, index: int, parameter: Tensor) -> None:
        """Copy a finished gradient to the wire buffer and let every chunk that it completes leave."""
        if self._first_gradient_at is None:
            self._first_gradient_at = time.perf_counter()
        if not self._last_pass:
            return
        self._take(index)  # a parameter that no module's forward waited for
        self._out.put(self._push_views[index], parameter.grad)  # type: ignore[arg-type]  # a hook's is never None
        parameter.grad = None
        self._mark_ready(index)

    def _begin_step(self) -> None:
        """From now on no gradient is ready."""
        self._ready = [False] * len(self._parameters)
        self._unready = [len(indices) for indices in self._parameters_of]  # of each chunk: parameters without gradient

    def _mark_ready(self, index: int) -> None:
        self._ready[index], self._taken[index] = True, False
        self._unpulled[index] = len(self._chunks_of[index])
        complete = []
        for chunk in self._chunks_of[index]:
            self._unready[chunk] -= 1
            if self._unready[chunk] == 0:
                complete.append(chunk)
        if complete:
            self._progress.post(lambda: self._outbox.add(complete))

    def synchronize(self) -> None:
        """Push zeros for parameters that the loss did not reach; where the norm decides, wait for it."""
        for index, ready in enumerate(self._ready):
            if not ready:
                self._take(index)
                self._out.put(self._push_views[index], torch.zeros(()))
                self._mark_ready(index)
        self._begin_step()
        if self.options.needs_norm:
            self._progress.wait(lambda: self._norm_known)
            self._norm_known = False
            self.scaler.update(math.isfinite(self._norm[0]))
        if self._returns_gradients:
            self.settle()

    def step(self) -> None:
        """Apply the mean gradient; or, where servers update, leave their weights to be taken by the next forward."""
        if self._returns_gradients:
            apply_mean_gradient(self._parameters, self._optimizer.step, self.options, self.scaler)
            self._optimizer.zero_grad()
        self._wait_in_forward_s = 0.0

    def _before_forward(self, needed: Sequence[int], *_: object) -> None:
        for index in needed:
            self._take(index)

    def _take(self, index: int) -> None:
        """Take over a parameter's new weights, or its mean gradient, waiting for them if need be."""
        if self._taken[index]:
            return
        if self._unpulled[index]:
            began = time.perf_counter()
            self._progress.wait(lambda: self._unpulled[index] == 0)
            if not self._returns_gradients:
                self._wait_in_forward_s += time.perf_counter() - began
        self._taken[index] = True
        if self._returns_gradients:
            self._parameters[index].grad = self._pull_views[index].to(self._parameters[index])
        elif not self._is_in_place[index]:
            with torch.no_grad():
                self._parameters[index].copy_(self._pull_views[index])

    def _in_place(self, parameter: Tensor) -> bool:
        """Whether new weights arrive where the model has its own, which then need not be copied.

        They come when backward needs the old ones no more: a chunk leaves, to be answered, when all its gradients are
        ready, and whatever reads a parameter in backward has then run.
        """
        arrives_whole = self.options.compression == "none" and not self._returns_gradients
        return arrives_whole and parameter.dtype == torch_dtype(self.options.wire_dtype) and not parameter.is_cuda

    def settle(self) -> None:
        """Take over all that is still to come."""
        self._before_forward(range(len(self._parameters)))

    def close(self) -> None:
        """Take the last weights, tell every server that this worker is done, serve until all are. Collective."""
        self._start_thread()
        self.settle()
        self._progress.post(self._say_goodbye)
        self._progress.look()
        self._thread.join()
        self._keep_weights()
        if self._server:
            self._server.withdraw()
        for request in self._pushes:
            request.Wait()
            request.Free()
        self._progress.withdraw()
        self._mail.free()
        self._comm.Free()

    def _keep_weights(self) -> None:
        """Have the last weights here when the server's memory is given back."""
        if self._weights_on_server() is not None:
            for parameter in filter(self._in_place, self._parameters):
                parameter.data = parameter.data.clone()

    # From here on: on whichever thread moves messages.

    def _send(self, chunk: Chunk) -> None:
        """Push a chunk."""
        push = self._pushes[chunk.index]
        push.Wait()  # the last step's: long done, it was answered
        self._out.pack(chunk.index)
        self._mail.sync()
        push.Start()
        self._progress.awaited += self._must_look
        if self.options.window_bytes is not None:
            self._progress.watch(push, lambda: self._outbox.arrived(chunk))

    def _chunk_pulled(self, chunk: Chunk) -> None:
        """Count a chunk that went out and came back; what a rank hands to itself does not travel."""
        self._progress.awaited -= self._must_look
        self._mail.sync()
        self._in.unpack(chunk.index)
        if self._roles.servers[chunk.server] != self._comm.rank:
            sent, received = self._out.message(chunk.index).nbytes, self._in.message(chunk.index).nbytes
            self.counters.add(sent, received, messages_sent=1, messages_received=1)
        self._chunks_left -= 1
        if self._chunks_left == 0:
            self._chunks_left = len(self._plan.chunks)
            self._communication_ended()
        for index in self._parameters_of[chunk.index]:
            self._unpulled[index] -= 1

    def _norm_arrived(self) -> None:
        self.counters.add(received=self._norm.nbytes, messages_received=1)
        self._norm_known = True

    def _norm_known_here(self, norm: float) -> None:
        self._norm[0] = norm
        self._norm_known = True

    def _say_goodbye(self) -> None:
        wait_all([self._comm.Isend(message(NOTHING), server, CLOSE_TAG) for server in self._roles.servers])
        self._said_goodbye = True

    def _is_done(self) -> bool:
        return self._said_goodbye and (self._server is None or self._server.closed)
