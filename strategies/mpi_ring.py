"""A ring-allreduce on mpi4py: Horovod's topology with the parameter server's buffers, dtypes and manners.

Beside `ring_allreduce` it shows what the library costs, beside `parameter_server` what the topology costs.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from mpi4py import MPI
from torch import Tensor, nn

from strategies.base import WorkerOptimizer, torch_dtype
from strategies.buffers import FlatLayout, Range, Readiness, as_bytes, balanced_ranges, chunk_ranges, host_buffer
from strategies.gradients import on_gradient
from strategies.group import Group
from strategies.options import Options
from strategies.volume import Volume

# A bucket's index is its tag, and every MPI offers tags up to 32767.
MOST_BUCKETS = 32768
# The thread sleeps between looks, longer the longer nothing comes: a spinning rank would take its core from one
# that computes, and the kernel's socket buffers keep the wire busy meanwhile.
SHORTEST_NAP_S = 50e-6
LONGEST_NAP_S = 500e-6


@dataclass(frozen=True)
class Hop:
    """What to do when a block has come: add to it, keep it, start what may follow."""

    received: Tensor
    addend: Tensor | None  # this rank's part; None: the block has come complete
    total: Tensor  # where the sum goes
    send: MPI.Prequest | None  # passes the block on; None: this was the last one
    receive: MPI.Prequest | None  # the receive whose place in the buffer is free now


@dataclass(frozen=True)
class Bucket:
    """A range of the vector, on its way round the ring independently of the others."""

    hops: tuple[Hop, ...]
    receives: tuple[MPI.Prequest, ...]
    sends: tuple[MPI.Prequest, ...]
    bytes_sent: int


class Ring:
    """Adds a vector of every rank, bucket by bucket, on a thread of its own.

    A bucket has one block per rank, equal to within an element. In hop h = 0 … 2N−3 rank r sends block r−h to its
    right neighbour and receives block r−h−1 from its left one, modulo N. In the first N−1 hops it adds its own
    part to what has come and passes the sum on (reduce-scatter), then it passes on what is complete (allgather):
    Patarasuk and Yuan, 2009. While a block of one bucket is added, those of others are on the wire.

    Additions are in fp32. With a 16-bit wire a block is rounded when it first leaves, once after each of its N−1
    additions, and nowhere else: a rank's own part is added unrounded. All ranks, the one that added last
    included, take the rounded sum, so that all end bitwise equal.
    """

    def __init__(
        self, comm: MPI.Intracomm, counters: Volume, num_elements: int, wire_dtype: torch.dtype,
        segment_bytes: int, pinned: bool = False,
    ) -> None:  # fmt: skip
        self.ranges = chunk_ranges(0, num_elements, comm.size * max(1, segment_bytes // wire_dtype.itemsize))
        if len(self.ranges) > MOST_BUCKETS:
            raise ValueError(
                f"segment_bytes {segment_bytes} makes {len(self.ranges)} buckets, more than MPI has tags; raise it"
            )
        self._comm, self._counters = comm, counters
        # This rank's part. In fp32 the sums to be passed on replace it.
        self.own = host_buffer(num_elements, torch.float32, pinned)
        self._sums = self.own if wire_dtype == torch.float32 else torch.empty(num_elements, dtype=wire_dtype)
        # Arrivals. A block comes twice, the second time complete, so that this ends as the result.
        self.result = host_buffer(num_elements, wire_dtype, pinned)
        self._buckets = [self._make_bucket(tag, span) for tag, span in enumerate(self.ranges)]
        self._awaited = [MPI.REQUEST_NULL] * len(self._buckets)
        self._hop_of = [0] * len(self._buckets)
        self._under_way = self._finished = 0
        self._nap_s = SHORTEST_NAP_S
        self._ready: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ring", daemon=True)
        self._thread.start()

    def _make_bucket(self, tag: int, span: Range) -> Bucket:
        """Make the persistent requests of every hop; one tag is enough, for MPI keeps messages in order."""
        size, rank = self._comm.size, self._comm.rank
        reduces = size - 1  # so many hops add
        blocks = [slice(*block) for block in balanced_ranges(*span, size)]
        leaving = [
            (self._sums if hop < reduces else self.result)[blocks[(rank - hop) % size]] for hop in range(2 * reduces)
        ]
        arriving = [blocks[(rank - hop - 1) % size] for hop in range(2 * reduces)]
        left, right = (rank - 1) % size, (rank + 1) % size
        sends = [self._comm.Send_init([as_bytes(block), MPI.BYTE], right, tag) for block in leaving]
        receives = [self._comm.Recv_init([as_bytes(self.result[b]), MPI.BYTE], left, tag) for b in arriving]
        hops = [
            Hop(
                received=self.result[block],
                addend=self.own[block] if hop < reduces else None,
                total=(self._sums if hop < reduces - 1 else self.result)[block],
                send=sends[hop + 1] if hop + 1 < 2 * reduces else None,
                receive=receives[hop + size] if hop + size < 2 * reduces else None,
            )
            for hop, block in enumerate(arriving)
        ]
        return Bucket(tuple(hops), tuple(receives), tuple(sends), sum(block.nbytes for block in leaving))

    def start(self, bucket: int) -> None:
        """Send a bucket of `own` round the ring; returns at once."""
        self._ready.put(bucket)

    def wait(self) -> None:
        """Return once all buckets, each started once, are complete in `result` and all that was sent has left."""
        error = self._done.get()
        if error is not None:
            raise error

    def close(self) -> None:
        """End the thread and free every request, between two steps."""
        self._ready.put(None)
        self._thread.join()
        for bucket in self._buckets:
            for request in (*bucket.receives, *bucket.sends):
                request.Free()

    def _run(self) -> None:
        """Move buckets on until close(); asleep while none is under way."""
        try:
            while (bucket := self._ready.get()) is not None:
                self._start(bucket)
                while self._under_way:
                    self._advance()
                if self._finished == len(self._buckets):
                    self._finish()
        except BaseException as error:  # whoever waits must hear of it
            self._done.put(error)

    def _start(self, index: int) -> None:
        """Let a bucket's first block leave, and be ready for what comes first."""
        bucket, size = self._buckets[index], self._comm.size
        if size == 1:
            span = slice(*self.ranges[index])
            self.result[span] = self.own[span]
            self._finished += 1
            return
        MPI.Prequest.Startall(list(bucket.receives[:size]))
        if self._sums is not self.own:
            block = slice(*balanced_ranges(*self.ranges[index], size)[self._comm.rank])
            self._sums[block] = self.own[block]
        bucket.sends[0].Start()
        self._hop_of[index], self._awaited[index] = 0, bucket.receives[0]
        self._under_way += 1

    def _advance(self) -> None:
        """Take what has come, start what has become ready, sleep if there was neither."""
        arrived = MPI.Request.Testsome(self._awaited) or []
        for index in arrived:
            self._pass_on(index)
        idle = not arrived and self._ready.empty()
        while not self._ready.empty():
            ready = self._ready.get()
            assert ready is not None  # close() comes between two steps
            self._start(ready)
        if not idle:
            self._nap_s = SHORTEST_NAP_S
        else:
            time.sleep(self._nap_s)
            self._nap_s = min(2 * self._nap_s, LONGEST_NAP_S)

    def _pass_on(self, index: int) -> None:
        """Add to the block that has come, send it on, and wait for the bucket's next one."""
        bucket, number = self._buckets[index], self._hop_of[index]
        hop = bucket.hops[number]
        if hop.addend is not None:
            torch.add(hop.addend, hop.received, out=hop.total)
        self._counters.add(received=hop.received.nbytes, messages_received=1)
        if hop.receive is not None:
            hop.receive.Start()
        if hop.send is not None:
            hop.send.Start()
            self._hop_of[index], self._awaited[index] = number + 1, bucket.receives[number + 1]
        else:
            self._awaited[index] = MPI.REQUEST_NULL
            self._under_way -= 1
            self._finished += 1

    def _finish(self) -> None:
        """Wait until everything has left, and tell who waits."""
        for bucket in self._buckets:
            while not MPI.Request.Testall(bucket.sends):
                time.sleep(SHORTEST_NAP_S)
            self._counters.add(sent=bucket.bytes_sent, messages_sent=len(bucket.sends))
        self._finished = 0
        self._done.put(None)


class MPIRing(WorkerOptimizer):
    """Trains with the mean gradient of all workers, added up by a ring of our own.

    A bucket sets out as soon as backward has produced its last gradient. Each worker divides its part by their
    number before anything is added or rounded: scaled fp16 gradients do not overflow.
    """

    def __init__(self, group: Group, options: Options) -> None:
        super().__init__(group, options)
        self._comm = group.comm.Dup()
        self._last_pass = True

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Take over rank 0's weights, identify the allreduce, install hooks. Collective."""
        super().prepare(model, optimizer)
        layout, options = FlatLayout.of(model), self.options
        self._layout = layout
        self._take_over_weights()
        self._identify(self._allreduce)
        pinned = layout.parameters[0].is_cuda
        self._ring = Ring(
            self._comm,
            self.counters,
            layout.num_elements,
            torch_dtype(options.wire_dtype),
            options.segment_bytes,
            pinned,
        )
        self._parts = layout.views(self._ring.own)
        # Where the mean gradient is read from, in fp32.
        self._mean = self._ring.result if options.wire_dtype == "fp32" else self._ring.own
        self._readiness = Readiness(layout, self._ring.ranges)
        for index, parameter in enumerate(layout.parameters):
            on_gradient(parameter, partial(self._gradient_ready, index))
        self._watch_gradients(model)
        return model

    def _take_over_weights(self) -> None:
        for parameter in self._layout.parameters:
            weights = parameter.detach().cpu().reshape(-1)
            self._comm.Bcast([as_bytes(weights), MPI.BYTE])
            with torch.no_grad():
                parameter.copy_(weights.view(parameter.shape))

    def _allreduce(self, vector: Tensor) -> Tensor:
        """Add up one vector, as gradients are. Collective."""
        uncounted = Volume()
        ring = Ring(self._comm, uncounted, vector.numel(), torch.float32, self.options.segment_bytes)
        ring.own.copy_(vector)
        for bucket in range(len(ring.ranges)):
            ring.start(bucket)
        ring.wait()
        ring.close()
        return ring.result

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Only the gradients of a step's last pass are complete, and leave."""
        self._last_pass = last
        yield

    def _gradient_ready(self, index: int, parameter: Tensor) -> None:
        """Take over a finished gradient, and start every bucket that it completes."""
        if not self._last_pass:
            return
        assert parameter.grad is not None  # in a hook it never is
        torch.mul(parameter.grad.cpu(), 1 / self.num_workers, out=self._parts[index])
        parameter.grad = None
        self._start_completed(index)

    def _start_completed(self, index: int) -> None:
        for bucket in self._readiness.complete(index):
            self._ring.start(bucket)

    def synchronize(self) -> None:
        """Add zeros for parameters that the loss did not reach, wait for every bucket, hand out the mean."""
        for index in self._readiness.missing():
            self._parts[index].zero_()
            self._start_completed(index)
        self._ring.wait()
        self._readiness.reset()
        if self._mean is not self._ring.result:
            self._mean.copy_(self._ring.result)
        for parameter, gradient in zip(self._layout.parameters, self._layout.views(self._mean), strict=True):
            parameter.grad = gradient.to(parameter.device)
        self._communication_ended()

    def close(self) -> None:
        """End the thread, give the communicator back. Collective."""
        self._ring.close()
        self._comm.Free()
