"""Where messages lie: what ranks of one node say to each other lies in memory that both see, and need not travel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mpi4py import MPI
from torch import Tensor

from strategies.base import torch_dtype
from strategies.options import Options
from strategies.parameter_server.compression import make_codec
from strategies.parameter_server.plan import Chunk, Plan

ALIGNMENT = 64  # bytes: a cache line, and more than any number needs
SHARED_MEMORY = "/dev/shm"  # where Open MPI's windows are


class NodeMemory:
    """Memory that the ranks of a node lay out for each other (MPI-3 shared memory windows).

    Without `sharing`, on a node with one rank, where it would not fit into /dev/shm, and for a rank whose memory is to
    be page-locked, a rank's memory is its own alone. Who reads what another has written must be told by a message, and
    both call `sync` around it.
    """

    def __init__(self, comm: MPI.Intracomm, nbytes: int, sharing: bool, pinned: bool) -> None:
        """Collective; `nbytes` is this rank's part."""
        self._rank = comm.rank
        self._window = self._open(comm, 0 if pinned else nbytes) if sharing else None
        self._own: Tensor | None = None
        if self._window is None or pinned:
            self._own = torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)

    def _open(self, comm: MPI.Intracomm, nbytes: int) -> MPI.Win | None:
        """Return the node's window, and know who has which place in it; None where there is nothing to share."""
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        assert isinstance(node, MPI.Intracomm)
        window = None
        if node.size > 1 and node.bcast(_has_room(node.allreduce(nbytes))):  # its first rank decides for all
            window = MPI.Win.Allocate_shared(nbytes + ALIGNMENT * (nbytes > 0), 1, comm=node)
            window.Lock_all()
            ranks = range(comm.size)
            places = MPI.Group.Translate_ranks(comm.Get_group(), ranks, node.Get_group())
            self._places = dict(zip(ranks, places, strict=True))
        node.Free()
        return window

    def of(self, rank: int) -> Tensor | None:
        """The bytes of a rank's part, uint8; None if they cannot be seen from here."""
        if self._window is not None and self._places[rank] != MPI.UNDEFINED:
            buffer, _ = self._window.Shared_query(self._places[rank])
            if len(buffer):
                return _from_cache_line(torch.frombuffer(buffer, dtype=torch.uint8))
        return self._own if rank == self._rank else None

    def shown_to(self, rank: int) -> bool:
        """Whether a rank sees this one's part."""
        shared = self._window is not None and self._own is None
        return rank == self._rank or (shared and self._places[rank] != MPI.UNDEFINED)

    def sync(self) -> None:
        """Let others see what was written before, and see what they wrote."""
        if self._window is not None:
            self._window.Sync()

    def free(self) -> None:
        """Collective."""
        if self._window is not None:
            self._window.Unlock_all()
            self._window.Free()


def _has_room(nbytes: int) -> bool:
    """Whether so much, and a tenth more for others, is left."""
    if not os.path.isdir(SHARED_MEMORY):
        return False
    disk = os.statvfs(SHARED_MEMORY)
    return 1.1 * nbytes < disk.f_bavail * disk.f_frsize


@dataclass(frozen=True)
class Messages:
    """Memory (uint8) that holds one message beside the other."""

    memory: Tensor
    places: Sequence[slice]

    @property
    def each(self) -> list[Tensor]:
        """One after the other."""
        return [self.memory[place] for place in self.places]


class Mailboxes:
    """Where the messages between workers and servers lie: each in its sender's memory.

    A receiver on the same node reads it there, and is sent no more than that it is ready. The sender's next message
    overwrites it; by then it was read: a server has summed a gradient when it answers, and a worker has taken an
    answer when it pushes again.
    """

    def __init__(
        self, comm: MPI.Intracomm, plan: Plan, options: Options,
        memory_of_node: type[NodeMemory] = NodeMemory, pinned: bool = False,
    ) -> None:  # fmt: skip
        """Collective."""
        self._rank = comm.rank
        self._plan = plan
        self._codec = make_codec(options)
        self._itemsize = torch_dtype(options.wire_dtype).itemsize
        self.answers_each = 1 if options.staleness_bound == 0 else len(plan.roles.workers)
        self._pushes = self._lay_out(plan.chunks)
        self._answers = [self._lay_out(plan.of_server(server)) for server in range(len(plan.roles.servers))]
        nbytes = self._begin_of_answers(comm.rank)
        if comm.rank in plan.roles.servers:
            nbytes += self.answers_each * _end(self._answers[plan.roles.servers.index(comm.rank)])
        self._memory = memory_of_node(comm, nbytes, options.shared_memory, pinned)
        self.sync = self._memory.sync
        self.free = self._memory.free

    def _nbytes(self, chunk: Chunk) -> int:
        return self._codec.nbytes(chunk.size) if self._codec else chunk.size * self._itemsize

    def _lay_out(self, chunks: Sequence[Chunk]) -> list[slice]:
        """Numbers without gaps, so that they are one vector; codes where a new cache line begins."""
        places, begin = [], 0
        for chunk in chunks:
            places.append(slice(begin, begin + self._nbytes(chunk)))
            begin = _aligned(places[-1].stop) if self._codec else places[-1].stop
        return places

    def _begin_of_answers(self, rank: int) -> int:
        return _end(self._pushes) if rank in self._plan.roles.workers else 0

    def travels_to(self, rank: int) -> bool:
        """Whether what this rank has for another one must be sent, for it does not see where that lies."""
        return not self._memory.shown_to(rank)

    def travels_from(self, rank: int) -> bool:
        """Whether what another rank has for this one arrives as a message."""
        return self._memory.of(rank) is None

    @property
    def shares(self) -> bool:
        """Whether this rank and another one, a worker and a server, see each other's messages without sending them."""
        workers, servers = self._plan.roles.workers, self._plan.roles.servers
        peers = (servers if self._rank in workers else ()) + (workers if self._rank in servers else ())
        return any(rank != self._rank and not self.travels_to(rank) for rank in peers)

    def pushes(self, worker: int, chunks: Sequence[Chunk]) -> Messages:
        """A worker's gradients of some chunks: where it writes them, or a place for them to arrive at."""
        theirs = self._memory.of(self._plan.roles.workers[worker])
        if theirs is None:
            return _empty(self._lay_out(chunks))
        return Messages(theirs[: self._pushes[-1].stop], [self._pushes[chunk.index] for chunk in chunks])

    def answers(self, server: int, which: int) -> Messages:
        """What a server returns for each of its chunks: where it writes that, or a place for it to arrive at."""
        rank, places = self._plan.roles.servers[server], self._answers[server]
        theirs = self._memory.of(rank)
        if theirs is None:
            return _empty(places)
        begin = self._begin_of_answers(rank) + which * _end(places)
        return Messages(theirs[begin : begin + places[-1].stop], places)

    def all_answers(self, worker: int) -> Tensor | None:
        """All that a worker is answered, side by side, if it comes from one server and is seen from here."""
        servers = self._plan.roles.servers
        if self._codec or len(servers) > 1 or self.travels_from(servers[0]):
            return None
        return self.answers(0, worker % self.answers_each).memory


def _from_cache_line(part: Tensor) -> Tensor:
    """A rank's part of a window without the ALIGNMENT bytes too many, from where a cache line begins.

    Open MPI has it begin 8 bytes later, and sums and updates across lines took a tenth longer. The place is the same in
    every process, for a window is mapped in whole pages.
    """
    begin = -part.data_ptr() % ALIGNMENT
    return part[begin : begin + len(part) - ALIGNMENT]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _end(places: Sequence[slice]) -> int:
    return _aligned(places[-1].stop)


def _empty(places: Sequence[slice]) -> Messages:
    return Messages(torch.empty(places[-1].stop, dtype=torch.uint8), places)
