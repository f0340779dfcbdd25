"""Which server holds which elements, and which message carries them; workers and servers compute it alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

from strategies.base import UnusableOptions, torch_dtype
from strategies.buffers import FlatLayout, Range, balanced_ranges, chunk_ranges
from strategies.options import Options
from strategies.sharding import place_tensors, server_parts

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
        """Place the servers: on the last `num_servers` ranks, on every rank, or on both (mixed)."""
        if placement != "colocated" and not 0 < num_servers < size:
            raise ValueError(
                f"{num_servers} servers of {size} ranks leave no worker or no server; start more with mpirun -n"
            )
        workers = size if placement == "colocated" else size - num_servers
        parts = server_parts(placement, workers, num_servers)
        return Roles(tuple(range(workers)), tuple(parts), tuple(parts.values()))


@dataclass(frozen=True)
class Chunk:
    """The elements [begin, end) of the flat vector that one message carries; `server` is an index into the servers."""

    index: int
    stripe: int  # its place among its server's chunks
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
    """The flat layout cut into chunks, each held by one server."""

    layout: FlatLayout
    roles: Roles
    chunks: tuple[Chunk, ...]

    @staticmethod
    def of(model: nn.Module, roles: Roles, options: Options) -> Plan:
        """Return the plan, which depends on shapes and options alone: every rank computes the same."""
        layout, dtype = FlatLayout.of(model), torch_dtype(options.wire_dtype)
        return Plan.make(layout, roles, options.chunk_bytes, dtype, options.sharding)

    @staticmethod
    def make(
        layout: FlatLayout, roles: Roles, chunk_bytes: int, wire_dtype: torch.dtype, sharding: str = "ranges"
    ) -> Plan:
        """Cut into the fewest chunks of at most `chunk_bytes`; UnusableOptions if a server would hold none."""
        most = max(1, chunk_bytes // wire_dtype.itemsize)
        cut = _cut_ranges if sharding == "ranges" else _cut_tensors
        chunks: list[Chunk] = []
        num_held = [0] * len(roles.servers)
        for server, (begin, end) in cut(layout, roles, most):
            chunks.append(Chunk(len(chunks), num_held[server], server, begin, end))
            num_held[server] += 1
        if chunks[-1].pull_tag > (MPI.COMM_WORLD.Get_attr(MPI.TAG_UB) or 32767):
            raise UnusableOptions(
                f"chunk_bytes: {chunk_bytes} makes {len(chunks)} chunks, more than MPI has tags; raise it"
            )
        if not all(num_held):
            raise UnusableOptions(
                f"sharding: {len(layout.parameters)} whole tensors leave {num_held.count(0)} of {len(num_held)} "
                "servers without any; use ranges, or fewer servers"
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


def _cut_ranges(layout: FlatLayout, roles: Roles, most: int) -> Iterator[tuple[int, Range]]:
    """Yield (server, elements): equal stripes, and each stripe cut into one chunk per server.

    All servers then work at every moment of a backward pass, and a GPT's embedding does not outweigh the rest.
    """
    total, ends = sum(roles.shares), np.cumsum(roles.shares)
    num_stripes = -(-layout.num_elements * max(roles.shares) // (most * total))
    for begin, end in balanced_ranges(0, layout.num_elements, num_stripes):
        cuts = [begin, *(begin + (end - begin) * int(part) // total for part in ends)]
        yield from enumerate(itertools.pairwise(cuts))


def _cut_tensors(layout: FlatLayout, roles: Roles, most: int) -> Iterator[tuple[int, Range]]:
    """Yield (server, elements): each tensor on one server, cut into chunks of its own."""
    sizes = [parameter.numel() for parameter in layout.parameters]
    for server, span in zip(place_tensors(sizes, roles.shares), layout.ranges(), strict=True):
        for elements in chunk_ranges(*span, most):
            yield server, elements


Buffer = np.ndarray
NOTHING = np.empty(0, np.uint8)  # the payload where only the arrival of a message matters


def message(buffer: Buffer) -> list[object]:
    """Return a buffer as mpi4py's Uppercase calls take it, as bytes."""
    return [buffer, MPI.BYTE]


def wait_all(requests: Sequence[MPI.Request]) -> None:
    """Complete all requests.

    Not by MPI_Wait: for a persistent request that was never started, Open MPI 5.0 reads its status from memory that
    nobody has written, and returns MPI_ERR_PROC_FAILED_PENDING if it finds that number there.
    """
    MPI.Request.Waitall(list(requests))
