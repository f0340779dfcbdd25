"""Message buffers: payloads between ranks of one node lie in memory that both see, and are not sent."""

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
    """Memory of each rank that the other ranks of its node can read and write (MPI-3 shared memory windows).

    A rank's memory is private without `sharing`, on a node with one rank, if it would not fit into /dev/shm, and if it
    is to be page-locked. Before a rank reads what another has written it needs a message from there, and both call
    `sync` around it.
    """

    def __init__(self, comm: MPI.Intracomm, nbytes: int, sharing: bool, pinned: bool) -> None:
        """Collective; `nbytes` is this rank's part."""
        self._rank = comm.rank
        self._window = self._open(comm, 0 if pinned else nbytes) if sharing else None
        self._own: Tensor | None = None
        if self._window is None or pinned:
            self._own = torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)

    def _open(self, comm: MPI.Intracomm, nbytes: int) -> MPI.Win | None:
        """Return the node's window and set `_places`, each rank's index in it; None where nothing is shared."""
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        assert isinstance(node, MPI.Intracomm)
        window = None
        # mpi4py's allreduce() of objects would hold Python's lock while it waits: no heartbeat, if a rank has stopped.
        needed = sum(node.allgather(nbytes))
        if node.size > 1 and node.bcast(_has_room(needed)):  # its first rank decides for all
            window = MPI.Win.Allocate_shared(nbytes + ALIGNMENT * (nbytes > 0), 1, comm=node)
            window.Lock_all()
            ranks = range(comm.size)
            places = MPI.Group.Translate_ranks(comm.Get_group(), ranks, node.Get_group())
            self._places = dict(zip(ranks, places, strict=True))
        node.Free()
        return window

    def of(self, rank: int) -> Tensor | None:
        """Return a rank's memory, uint8; None if it cannot be read from here."""
        if self._window is not None and self._places[rank] != MPI.UNDEFINED:
            buffer, _ = self._window.Shared_query(self._places[rank])
            if len(buffer):
                return _from_cache_line(torch.frombuffer(buffer, dtype=torch.uint8))
        return self._own if rank == self._rank else None

    def is_visible_to(self, rank: int) -> bool:
        """Whether a rank can read this one's memory."""
        shared = self._window is not None and self._own is None
        return rank == self._rank or (shared and self._places[rank] != MPI.UNDEFINED)

    def sync(self) -> None:
        """Make earlier writes visible to the others, and theirs visible here."""
        if self._window is not None:
            self._window.Sync()

    def free(self) -> None:
        """Collective."""
        if self._window is not None:
            self._window.Unlock_all()
            self._window.Free()


def _has_room(nbytes: int) -> bool:
    """Whether so many bytes fit into /dev/shm and leave a tenth of them to others."""
    if not os.path.isdir(SHARED_MEMORY):
        return False
    disk = os.statvfs(SHARED_MEMORY)
    return 1.1 * nbytes < disk.f_bavail * disk.f_frsize


@dataclass(frozen=True)
class Messages:
    """Contiguous memory (uint8) and the bytes of each message in it."""

    memory: Tensor
    places: Sequence[slice]

    @property
    def each(self) -> list[Tensor]:
        """Each message's bytes, uint8."""
        return [self.memory[place] for place in self.places]


class MessageBuffers:
    """The buffers of all messages between workers and servers: each lies in its sender's memory.

    A receiver on the same node reads it there, and gets an empty message when it is ready. The sender's next message
    overwrites it; by then it was read: a server has summed a gradient when it replies, and a worker has taken over a
    reply when it pushes again.
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
        self.num_replies = 1 if options.staleness_bound == 0 else len(plan.roles.workers)
        self._pushes = self._lay_out(plan.chunks)
        self._replies = [self._lay_out(plan.of_server(server)) for server in range(len(plan.roles.servers))]
        nbytes = self._begin_of_replies(comm.rank)
        if comm.rank in plan.roles.servers:
            nbytes += self.num_replies * _end(self._replies[plan.roles.servers.index(comm.rank)])
        self._memory = memory_of_node(comm, nbytes, options.shared_memory, pinned)
        self.sync = self._memory.sync
        self.free = self._memory.free

    def _nbytes(self, chunk: Chunk) -> int:
        return self._codec.nbytes(chunk.size) if self._codec else chunk.size * self._itemsize

    def _lay_out(self, chunks: Sequence[Chunk]) -> list[slice]:
        """Return the bytes of each message: uncompressed ones form one vector, codes begin on a cache line."""
        places, begin = [], 0
        for chunk in chunks:
            places.append(slice(begin, begin + self._nbytes(chunk)))
            begin = _aligned(places[-1].stop) if self._codec else places[-1].stop
        return places

    def _begin_of_replies(self, rank: int) -> int:
        return _end(self._pushes) if rank in self._plan.roles.workers else 0

    def is_sent_to(self, rank: int) -> bool:
        """Whether a payload for another rank must be sent, because that rank cannot read this one's memory."""
        return not self._memory.is_visible_to(rank)

    def is_sent_from(self, rank: int) -> bool:
        """Whether a payload from another rank arrives as a message."""
        return self._memory.of(rank) is None

    @property
    def shares(self) -> bool:
        """Whether this rank and another one, a worker and a server, read each other's payloads in shared memory."""
        workers, servers = self._plan.roles.workers, self._plan.roles.servers
        peers = (servers if self._rank in workers else ()) + (workers if self._rank in servers else ())
        return any(rank != self._rank and not self.is_sent_to(rank) for rank in peers)

    def pushes(self, worker: int, chunks: Sequence[Chunk]) -> Messages:
        """Return the buffers of a worker's gradients of some chunks: where it writes them, or where they arrive."""
        memory = self._memory.of(self._plan.roles.workers[worker])
        if memory is None:
            return _empty(self._lay_out(chunks))
        return Messages(memory[: self._pushes[-1].stop], [self._pushes[chunk.index] for chunk in chunks])

    def replies(self, server: int, number: int) -> Messages:
        """Return the buffers of a server's replies, one per chunk of its shard: where it writes them, or they arrive.

        `number` is below `num_replies`: worker w reads those of w % num_replies.
        """
        rank, places = self._plan.roles.servers[server], self._replies[server]
        memory = self._memory.of(rank)
        if memory is None:
            return _empty(places)
        begin = self._begin_of_replies(rank) + number * _end(places)
        return Messages(memory[begin : begin + places[-1].stop], places)

    def whole_reply(self, worker: int) -> Tensor | None:
        """Return all replies to a worker as one vector (uint8); None unless they are uncompressed and in one memory."""
        servers = self._plan.roles.servers
        if self._codec or len(servers) > 1 or self.is_sent_from(servers[0]):
            return None
        return self.replies(0, worker % self.num_replies).memory


def _from_cache_line(part: Tensor) -> Tensor:
    """Return a rank's part of a window from its first cache line on, ALIGNMENT bytes shorter.

    Open MPI starts it 8 bytes into a line, and misaligned sums and updates took a tenth longer. The offset is the same
    in every process, because a window is mapped in whole pages.
    """
    begin = -part.data_ptr() % ALIGNMENT
    return part[begin : begin + len(part) - ALIGNMENT]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _end(places: Sequence[slice]) -> int:
    return _aligned(places[-1].stop)


def _empty(places: Sequence[slice]) -> Messages:
    return Messages(torch.empty(places[-1].stop, dtype=torch.uint8), places)
