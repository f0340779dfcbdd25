"""Who holds what, and which message carries it: the agreement between workers and servers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mpi4py import MPI

from strategies.buffers import FlatLayout, balanced_ranges, chunk_ranges

# Chunk i is pushed with tag 2i and pulled with tag 2i+1, in a communicator of its own; the rest lies below
# the smallest MPI_TAG_UB that the standard allows.
NORM_TAG = 32767
CLOSE_TAG = 32766
# A waiting rank sleeps: a spinning one would take its core from a rank that computes.
NAP_S = 50e-6


@dataclass(frozen=True)
class Roles:
    """Which ranks work and which serve. In tests one process may do both, on two threads."""

    workers: tuple[int, ...]
    servers: tuple[int, ...]

    @staticmethod
    def dedicated(size: int, num_servers: int) -> Roles:
        """The last `num_servers` of `size` ranks serve, all others work."""
        if not 0 < num_servers < size:
            raise ValueError(f"{num_servers} servers of {size} ranks leave no worker or no server")
        first_server = size - num_servers
        return Roles(tuple(range(first_server)), tuple(range(first_server, size)))


@dataclass(frozen=True)
class Chunk:
    """One message's worth of the flat vector: elements [begin, end), held by the server of that index."""

    index: int
    server: int
    begin: int
    end: int

    @property
    def push_tag(self) -> int:
        """Tag of its gradients."""
        return 2 * self.index

    @property
    def pull_tag(self) -> int:
        """Tag of its parameters."""
        return 2 * self.index + 1


@dataclass(frozen=True)
class Plan:
    """The flat layout cut into one byte-balanced shard per server, and each shard into chunks.

    A shard is a range of elements, not a set of tensors: a GPT's embedding would dwarf every other shard.
    """

    layout: FlatLayout
    chunks: tuple[Chunk, ...]
    num_servers: int

    @staticmethod
    def make(layout: FlatLayout, num_servers: int, chunk_bytes: int, wire_dtype: torch.dtype) -> Plan:
        """Cut so that shards differ by at most one element and no message exceeds `chunk_bytes`."""
        most = max(1, chunk_bytes // wire_dtype.itemsize)
        chunks: list[Chunk] = []
        for server, shard in enumerate(balanced_ranges(0, layout.num_elements, num_servers)):
            chunks += [Chunk(len(chunks) + i, server, *r) for i, r in enumerate(chunk_ranges(*shard, most))]
        if 2 * len(chunks) >= CLOSE_TAG:
            raise ValueError(f"chunk_bytes {chunk_bytes} makes {len(chunks)} chunks, more than MPI has tags; raise it")
        return Plan(layout, tuple(chunks), num_servers)

    def of_server(self, server: int) -> list[Chunk]:
        """The chunks that make up one server's shard, in order."""
        return [chunk for chunk in self.chunks if chunk.server == server]

    @property
    def imbalance(self) -> float:
        """λ: the largest shard over the mean shard, 1.0 when perfectly balanced."""
        sizes = [sum(c.end - c.begin for c in self.of_server(s)) for s in range(self.num_servers)]
        return max(sizes) * self.num_servers / self.layout.num_elements


Buffer = np.ndarray


def message(buffer: Buffer) -> list[object]:
    """What mpi4py's Uppercase calls take to move a buffer byte by byte."""
    return [buffer, MPI.BYTE]


def wait_all(requests: Sequence[MPI.Request]) -> None:
    """Complete all requests, sleeping between looks."""
    pending = list(requests)
    while not MPI.Request.Testall(pending):
        time.sleep(NAP_S)
