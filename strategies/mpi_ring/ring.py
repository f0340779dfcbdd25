"""A ring-allreduce of one vector, cut into buckets, on mpi4py."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor, nn

from strategies.base import UnusableOptions
from strategies.buffers import Range, as_bytes, balanced_ranges, chunk_ranges, host_buffer, pieces
from strategies.volume import Volume

# A bucket's index is its tag, and every MPI offers tags up to 32767, the last of which norms have.
MAX_BUCKETS = NORM_TAG = 32767
# The thread sleeps between two tests of its requests, longer while nothing arrives: busy waiting would take a core from
# a rank that computes, and the kernel's socket buffers keep the link busy meanwhile.
MIN_SLEEP_S = 50e-6
MAX_SLEEP_S = 500e-6
# Buckets whose requests one call tests: its time grows with their number, and a large model has thousands in flight.
TESTED = 256


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


def broadcast_weights(comm: MPI.Intracomm, parameters: Iterable[nn.Parameter]) -> None:
    """Give every rank rank 0's weights. Collective."""
    for parameter in parameters:
        weights = parameter.detach().cpu().reshape(-1)
        for piece in pieces(as_bytes(weights)):
            comm.Bcast([piece, MPI.BYTE])
        with torch.no_grad():
            parameter.copy_(weights.view(parameter.shape))


def sum_over_ranks(comm: MPI.Intracomm, counters: Volume, value: float) -> float:
    """Return the sum of one number of every rank, added in rank order, so that it is the same everywhere. Collective.

    It sleeps while it waits; other messages of this process move on meanwhile.
    """
    values = np.zeros(comm.size)
    values[comm.rank] = value
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    requests = [comm.Irecv([values[rank : rank + 1], MPI.BYTE], rank, NORM_TAG) for rank in others]
    requests += [comm.Isend([values[comm.rank : comm.rank + 1], MPI.BYTE], rank, NORM_TAG) for rank in others]
    while not MPI.Request.Testall(requests):
        time.sleep(MIN_SLEEP_S)
    moved = len(others) * values.itemsize
    counters.add(moved, moved, len(others), len(others))
    return float(sum(values.tolist()))


class Ring:
    """Sums a vector over all ranks, bucket by bucket, on a thread of its own.

    A bucket has one block per rank, equal to within an element. In hop h = 0 … 2N−3 rank r sends block r−h to its
    right neighbour and receives block r−h−1 from its left one, modulo N. In the first N−1 hops it adds its own
    part to the received block and sends the sum on (reduce-scatter), then it sends complete blocks on (all-gather):
    Patarasuk and Yuan, 2009. While a block of one bucket is summed, blocks of other buckets are in flight.

    Sums are in fp32. With a 16-bit wire dtype a block is rounded when it is first sent and once after each of its N−1
    additions; a rank's own part is added unrounded. All ranks, also the one that added last, use the rounded sum, so
    that their results are bitwise equal.

    With `reduced`, something else than the sum may be gathered. It is called on the ring's thread with a bucket's index
    once `own` holds this rank's block of the sum (`own_block`) in fp32. It writes to that block of `result` what all
    ranks shall receive, and calls `gather(index)`; or both later, for several buckets in any order.
    """

    def __init__(
        self, comm: MPI.Intracomm, counters: Volume, num_elements: int, wire_dtype: torch.dtype,
        segment_bytes: int, pinned: bool = False, reduced: Callable[[int], None] | None = None,
        gathered: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Make every request; `gathered` is called on the ring's thread when the last bucket of a step is complete."""
        self.ranges = chunk_ranges(0, num_elements, comm.size * max(1, segment_bytes // wire_dtype.itemsize))
        if len(self.ranges) > MAX_BUCKETS:
            raise UnusableOptions(
                f"segment_bytes: {segment_bytes} makes {len(self.ranges)} buckets, more than MPI has tags; raise it"
            )
        self._comm, self._counters = comm, counters
        self._reduced, self._gathered = reduced, gathered
        # This rank's vector. In fp32 the sums to send on overwrite it.
        self.own = host_buffer(num_elements, torch.float32, pinned)
        self._sums = self.own if wire_dtype == torch.float32 else torch.empty(num_elements, dtype=wire_dtype)
        # Receive buffer. A block arrives twice, the second time complete, so that this becomes the result.
        self.result = host_buffer(num_elements, wire_dtype, pinned)
        self._buckets = [self._make_bucket(tag, span) for tag, span in enumerate(self.ranges)]
        self._awaited = [MPI.REQUEST_NULL] * len(self._buckets)
        self._in_flight: deque[int] = deque()  # buckets in the order in which they are tested next
        self._idle_tests = 0  # buckets tested since a block arrived
        self._hop_of = [0] * len(self._buckets)
        self._num_in_flight = self._num_finished = 0
        self._sleep_s = MIN_SLEEP_S
        self._ready: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.changed = threading.Condition()  # of the three below and of what `reduced` changes
        self._is_complete = [True] * len(self._buckets)
        self._is_finished = True  # and all sends are done
        self._error: BaseException | None = None
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
                total=(self._sums if hop < num_sums - 1 else self.result if self._reduced is None else self.own)[block],
                send=sends[hop + 1] if hop + 1 < 2 * num_sums else None,
                receive=receives[hop + size] if hop + size < 2 * num_sums else None,
            )
            for hop, block in enumerate(incoming)
        ]
        return Bucket(tuple(hops), tuple(receives), tuple(sends), sum(block.nbytes for block in outgoing))

    def own_block(self, bucket: int, rank: int | None = None) -> slice:
        """Return the elements of a bucket whose sum a rank, this one unless given, is the last to add to."""
        rank = self._comm.rank if rank is None else rank
        return slice(*balanced_ranges(*self.ranges[bucket], self._comm.size)[(rank + 1) % self._comm.size])

    def start(self, bucket: int) -> None:
        """Start to sum a bucket of `own`; returns at once."""
        self._is_complete[bucket] = self._is_finished = False
        self._ready.put(bucket)

    def wait(self) -> None:
        """Block until all buckets, each started once, are complete in `result` and all sends are done."""
        self.wait_until(lambda: self._is_finished)

    def is_complete(self, buckets: Sequence[int]) -> bool:
        """Return whether some buckets, as far as they were started, are complete in `result`."""
        return all(self._is_complete[bucket] for bucket in buckets)

    def wait_for(self, buckets: Sequence[int]) -> None:
        """Block until some buckets are complete in `result`."""
        self.wait_until(lambda: self.is_complete(buckets))

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Block until `holds()`; whoever changes what it depends on notifies `changed`."""
        with self.changed:
            self.changed.wait_for(lambda: holds() or self._error is not None)
        if self._error is not None:
            raise self._error

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
        except BaseException as error:  # whoever waits raises it
            with self.changed:
                self._error = error
                self.changed.notify_all()

    def _start(self, index: int) -> None:
        """Post a bucket's first receives and send its first block."""
        bucket, size = self._buckets[index], self._comm.size
        if size == 1:
            self._num_in_flight += 1
            span = slice(*self.ranges[index])
            if self._reduced is not None:
                self._reduced(index)
            else:
                self.result[span] = self.own[span]
                self._complete(index)
            return
        MPI.Prequest.Startall(list(bucket.receives[:size]))
        if self._sums is not self.own:
            block = slice(*balanced_ranges(*self.ranges[index], size)[self._comm.rank])
            self._sums[block] = self.own[block]
        bucket.sends[0].Start()
        self._await(index, 0)
        self._num_in_flight += 1

    def _advance(self) -> None:
        """Handle arrived blocks and newly started buckets; sleep if there are none."""
        tested = [self._in_flight.popleft() for _ in range(min(TESTED, len(self._in_flight)))]
        found = MPI.Request.Testsome([self._awaited[index] for index in tested]) or []
        arrived = [tested[position] for position in found]
        self._in_flight.extend(sorted(set(tested) - set(arrived)))
        self._idle_tests = 0 if arrived else self._idle_tests + len(tested)
        for index in arrived:
            self._block_arrived(index)
        idle = self._idle_tests >= len(self._in_flight) and not arrived and self._ready.empty()
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
        if number == self._comm.size - 2 and self._reduced is not None:
            self._reduced(index)
        elif hop.send is not None:
            self._next_hop(index)
        else:
            self._complete(index)

    def gather(self, index: int) -> None:
        """Send this rank's block of a bucket round the ring; only from `reduced`, on the ring's thread."""
        if self._comm.size == 1:
            self._complete(index)
        else:
            self._next_hop(index)

    def _next_hop(self, index: int) -> None:
        """Send the block that the last hop left, and wait for the next one."""
        bucket, number = self._buckets[index], self._hop_of[index]
        send = bucket.hops[number].send
        assert send is not None  # the caller knows that another hop follows
        send.Start()
        self._await(index, number + 1)

    def _await(self, index: int, hop: int) -> None:
        """Test for a bucket's block of a hop from now on."""
        self._hop_of[index], self._awaited[index] = hop, self._buckets[index].receives[hop]
        self._in_flight.append(index)

    def _complete(self, index: int) -> None:
        """Note that a bucket has gone round."""
        self._num_in_flight -= 1
        self._num_finished += 1
        with self.changed:
            self._is_complete[index] = True
            self.changed.notify_all()
        if self._num_finished == len(self._buckets):
            self._gathered()

    def _finish(self) -> None:
        """Wait for all sends, then release wait()."""
        for bucket in self._buckets:
            while not MPI.Request.Testall(bucket.sends):
                time.sleep(MIN_SLEEP_S)
            self._counters.add(sent=bucket.bytes_sent, messages_sent=len(bucket.sends))
        self._num_finished = 0
        with self.changed:
            self._is_finished = True
            self.changed.notify_all()
