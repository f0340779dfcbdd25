"""A ring-allreduce of one vector, cut into buckets, on mpi4py."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass

import torch
from mpi4py import MPI
from torch import Tensor

from strategies.base import UnusableOptions
from strategies.buffers import Range, as_bytes, balanced_ranges, chunk_ranges, host_buffer
from strategies.volume import Volume

# A bucket's index is its tag, and every MPI offers tags up to 32767.
MAX_BUCKETS = 32768
# The thread sleeps between two tests of its requests, longer while nothing arrives: busy waiting would take a core from
# a rank that computes, and the kernel's socket buffers keep the link busy meanwhile.
MIN_SLEEP_S = 50e-6
MAX_SLEEP_S = 500e-6


@dataclass(frozen=True)
class Hop:
    """What to do when a block has arrived: add this rank's part, send the sum on, post the next receive."""

    received: Tensor
    addend: Tensor | None  # this rank's part; None: the block has arrived complete
    total: Tensor  # where the sum is written
    send: MPI.Prequest | None  # sends the block on; None: this was the last hop
    receive: MPI.Prequest | None  # the receive whose place in the buffer is free now


@dataclass(frozen=True)
class Bucket:
    """The requests of one range of the vector; buckets go round the ring independently of each other."""

    hops: tuple[Hop, ...]
    receives: tuple[MPI.Prequest, ...]
    sends: tuple[MPI.Prequest, ...]
    bytes_sent: int


class Ring:
    """Sums a vector over all ranks, bucket by bucket, on a thread of its own.

    A bucket has one block per rank, equal to within an element. In hop h = 0 … 2N−3 rank r sends block r−h to its
    right neighbour and receives block r−h−1 from its left one, modulo N. In the first N−1 hops it adds its own
    part to the received block and sends the sum on (reduce-scatter), then it sends complete blocks on (all-gather):
    Patarasuk and Yuan, 2009. While a block of one bucket is summed, blocks of other buckets are in flight.

    Sums are in fp32. With a 16-bit wire dtype a block is rounded when it is first sent and once after each of its N−1
    additions; a rank's own part is added unrounded. All ranks, also the one that added last, use the rounded sum, so
    that their results are bitwise equal.
    """

    def __init__(
        self, comm: MPI.Intracomm, counters: Volume, num_elements: int, wire_dtype: torch.dtype,
        segment_bytes: int, pinned: bool = False,
    ) -> None:  # fmt: skip
        self.ranges = chunk_ranges(0, num_elements, comm.size * max(1, segment_bytes // wire_dtype.itemsize))
        if len(self.ranges) > MAX_BUCKETS:
            raise UnusableOptions(
                f"segment_bytes: {segment_bytes} makes {len(self.ranges)} buckets, more than MPI has tags; raise it"
            )
        self._comm, self._counters = comm, counters
        # This rank's vector. In fp32 the sums to send on overwrite it.
        self.own = host_buffer(num_elements, torch.float32, pinned)
        self._sums = self.own if wire_dtype == torch.float32 else torch.empty(num_elements, dtype=wire_dtype)
        # Receive buffer. A block arrives twice, the second time complete, so that this becomes the result.
        self.result = host_buffer(num_elements, wire_dtype, pinned)
        self._buckets = [self._make_bucket(tag, span) for tag, span in enumerate(self.ranges)]
        self._awaited = [MPI.REQUEST_NULL] * len(self._buckets)
        self._hop_of = [0] * len(self._buckets)
        self._num_in_flight = self._num_finished = 0
        self._sleep_s = MIN_SLEEP_S
        self._ready: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ring", daemon=True)
        self._thread.start()

    def _make_bucket(self, tag: int, span: Range) -> Bucket:
        """Make the persistent requests of every hop; one tag is enough, because MPI keeps messages in order."""
        size, rank = self._comm.size, self._comm.rank
        num_sums = size - 1  # hops that add
        blocks = [slice(*block) for block in balanced_ranges(*span, size)]
        outgoing = [
            (self._sums if hop < num_sums else self.result)[blocks[(rank - hop) % size]] for hop in range(2 * num_sums)
        ]
        incoming = [blocks[(rank - hop - 1) % size] for hop in range(2 * num_sums)]
        left, right = (rank - 1) % size, (rank + 1) % size
        sends = [self._comm.Send_init([as_bytes(block), MPI.BYTE], right, tag) for block in outgoing]
        receives = [self._comm.Recv_init([as_bytes(self.result[b]), MPI.BYTE], left, tag) for b in incoming]
        hops = [
            Hop(
                received=self.result[block],
                addend=self.own[block] if hop < num_sums else None,
                total=(self._sums if hop < num_sums - 1 else self.result)[block],
                send=sends[hop + 1] if hop + 1 < 2 * num_sums else None,
                receive=receives[hop + size] if hop + size < 2 * num_sums else None,
            )
            for hop, block in enumerate(incoming)
        ]
        return Bucket(tuple(hops), tuple(receives), tuple(sends), sum(block.nbytes for block in outgoing))

    def start(self, bucket: int) -> None:
        """Start to sum a bucket of `own`; returns at once."""
        self._ready.put(bucket)

    def wait(self) -> None:
        """Block until all buckets, each started once, are complete in `result` and all sends are done."""
        error = self._done.get()
        if error is not None:
            raise error

    def close(self) -> None:
        """End the thread and free every request. Not while a bucket is in flight."""
        self._ready.put(None)
        self._thread.join()
        for bucket in self._buckets:
            for request in (*bucket.receives, *bucket.sends):
                request.Free()

    def _run(self) -> None:
        """Run every bucket that is started, until close(); blocks while none is in flight."""
        try:
            while (bucket := self._ready.get()) is not None:
                self._start(bucket)
                while self._num_in_flight:
                    self._advance()
                if self._num_finished == len(self._buckets):
                    self._finish()
        except BaseException as error:  # wait() raises it
            self._done.put(error)

    def _start(self, index: int) -> None:
        """Post a bucket's first receives and send its first block."""
        bucket, size = self._buckets[index], self._comm.size
        if size == 1:
            span = slice(*self.ranges[index])
            self.result[span] = self.own[span]
            self._num_finished += 1
            return
        MPI.Prequest.Startall(list(bucket.receives[:size]))
        if self._sums is not self.own:
            block = slice(*balanced_ranges(*self.ranges[index], size)[self._comm.rank])
            self._sums[block] = self.own[block]
        bucket.sends[0].Start()
        self._hop_of[index], self._awaited[index] = 0, bucket.receives[0]
        self._num_in_flight += 1

    def _advance(self) -> None:
        """Handle arrived blocks and newly started buckets; sleep if there are none."""
        arrived = MPI.Request.Testsome(self._awaited) or []
        for index in arrived:
            self._block_arrived(index)
        idle = not arrived and self._ready.empty()
        while not self._ready.empty():
            ready = self._ready.get()
            assert ready is not None  # close() is not called while a bucket is in flight
            self._start(ready)
        if not idle:
            self._sleep_s = MIN_SLEEP_S
        else:
            time.sleep(self._sleep_s)
            self._sleep_s = min(2 * self._sleep_s, MAX_SLEEP_S)

    def _block_arrived(self, index: int) -> None:
        """Add this rank's part to a block, send it on, and wait for the bucket's next one."""
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
            self._num_in_flight -= 1
            self._num_finished += 1

    def _finish(self) -> None:
        """Wait for all sends, then release wait()."""
        for bucket in self._buckets:
            while not MPI.Request.Testall(bucket.sends):
                time.sleep(MIN_SLEEP_S)
            self._counters.add(sent=bucket.bytes_sent, messages_sent=len(bucket.sends))
        self._num_finished = 0
        self._done.put(None)
