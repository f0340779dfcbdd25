"""Which server holds which elements, and which message carries them; workers and servers compute it alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

from strategies.base import UnusableOptions, torch_dtype
from strategies.buffers import FlatLayout, balanced_ranges
from strategies.options import Options

# Chunk i is pushed with tag 2i+3 and pulled with tag 2i+4, in a communicator of its own.
CLOSE_TAG = 0
NORM_TAG = 1
SETTINGS_TAG = 2


@dataclass(frozen=True)
class Roles:
    """Which ranks train, which serve, and how much each server holds: `shares` are relative whole numbers."""

    workers: tuple[int, ...]
    servers: tuple[int, ...]
    shares: tuple[int, ...]

    @staticmethod
    def make(placement: str, size: int, num_servers: int) -> Roles:
        """Place the servers: on the last `num_servers` ranks, on every rank, or on both (mixed).

        Mixed is the split that loads all links alike (Jiang et al., "A Unified Architecture for Accelerating
        Distributed DNN Training", OSDI 2020): of n workers and k other servers, a worker's rank holds n-k
        parts, another server 2(n-1).
        """
        workers = size - num_servers
        if placement == "colocated":
            return Roles(tuple(range(size)), tuple(range(size)), (1,) * size)
        if not 0 < num_servers < size:
            raise ValueError(
                f"{num_servers} servers of {size} ranks leave no worker or no server; start more with mpirun -n"
            )
        dedicated = tuple(range(workers, size))
        if placement == "dedicated" or num_servers >= workers:
            return Roles(tuple(range(workers)), dedicated, (1,) * num_servers)
        shares = (workers - num_servers,) * workers + (2 * (workers - 1),) * num_servers
        return Roles(tuple(range(workers)), tuple(range(size)), shares)


@dataclass(frozen=True)
class Chunk:
    """The elements [begin, end) of the flat vector that one message carries; `server` is an index into the servers."""

    index: int
    stripe: int
    server: int
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.end - self.begin

    @property
    def push_tag(self) -> int:
        """Tag of its gradients."""
        return 2 * self.index + 3

    @property
    def pull_tag(self) -> int:
        """Tag of its parameters."""
        return 2 * self.index + 4


@dataclass(frozen=True)
class Plan:
    """The flat layout cut into stripes, and each stripe into one chunk per server.

    Stripes, so that all servers work at every moment of a backward pass; ranges of elements, not sets of
    tensors, so that a GPT's embedding does not outweigh the rest.
    """

    layout: FlatLayout
    roles: Roles
    chunks: tuple[Chunk, ...]

    @staticmethod
    def of(model: nn.Module, roles: Roles, options: Options) -> Plan:
        """Return the plan, which depends on shapes and options alone: every rank computes the same."""
        return Plan.make(FlatLayout.of(model), roles, options.chunk_bytes, torch_dtype(options.wire_dtype))

    @staticmethod
    def make(layout: FlatLayout, roles: Roles, chunk_bytes: int, wire_dtype: torch.dtype) -> Plan:
        """Cut into the fewest equal stripes none of whose chunks exceeds `chunk_bytes`."""
        most, total = max(1, chunk_bytes // wire_dtype.itemsize), sum(roles.shares)
        num_stripes = -(-layout.num_elements * max(roles.shares) // (most * total))
        ends = np.cumsum(roles.shares)
        chunks: list[Chunk] = []
        for stripe, (begin, end) in enumerate(balanced_ranges(0, layout.num_elements, num_stripes)):
            cuts = [begin, *(begin + (end - begin) * int(part) // total for part in ends)]
            for server in range(len(roles.servers)):
                chunks.append(Chunk(len(chunks), stripe, server, cuts[server], cuts[server + 1]))
        if chunks[-1].pull_tag > (MPI.COMM_WORLD.Get_attr(MPI.TAG_UB) or 32767):
            raise UnusableOptions(
                f"chunk_bytes: {chunk_bytes} makes {len(chunks)} chunks, more than MPI has tags; raise it"
            )
        return Plan(layout, roles, tuple(chunks))

    def of_server(self, server: int) -> list[Chunk]:
        """The chunks that make up one server's shard, in order."""
        return [chunk for chunk in self.chunks if chunk.server == server]

    @cached_property
    def imbalance(self) -> float:
        """λ: the largest ratio of what a server holds to its due share; 1.0 is perfectly balanced."""
        held = np.zeros(len(self.roles.servers))
        for chunk in self.chunks:
            held[chunk.server] += chunk.size
        shares = np.array(self.roles.shares)
        return float((held / (self.layout.num_elements * shares / shares.sum())).max())


Buffer = np.ndarray
NOTHING = np.empty(0, np.uint8)  # the payload where only the arrival of a message matters


def message(buffer: Buffer) -> list[object]:
    """Return a buffer as mpi4py's Uppercase calls take it, as bytes."""
    return [buffer, MPI.BYTE]


def wait_all(requests: Sequence[MPI.Request]) -> None:
    """Complete all requests."""
    MPI.Request.Waitall(list(requests))
