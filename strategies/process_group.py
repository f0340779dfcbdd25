"""torch.distributed's processes of a run: Gloo on CPUs, NCCL on GPUs."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.distributed import (  # type: ignore[attr-defined]  # re-exports from C++
    DebugLevel,
    Store,
    TCPStore,
    set_debug_level,
)

from strategies.group import Group
from strategies.nccl import require_own_gpu

_runs = itertools.count()


def start(group: Group, device: torch.device) -> None:
    """Start the default process group of all ranks, for tensors on `device`. Collective."""
    require_own_gpu(group, device)
    # TORCH_DISTRIBUTED_DEBUG=DETAIL checks every collective, and torch 2.13 crashes under it with a TCPStore.
    set_debug_level(DebugLevel.OFF)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = _rendezvous(group)
    dist.init_process_group(backend, store=store, rank=group.rank, world_size=group.size)


def subgroup(ranks: Sequence[int]) -> dist.ProcessGroup | None:
    """Return the group of these ranks, None on the others. Collective over all ranks."""
    found = dist.new_group(list(ranks))
    return found if isinstance(found, dist.ProcessGroup) else None


def mesh_name() -> str:
    """Return a name for a device mesh that no mesh of an earlier run in this process had.

    torch keeps what it derives from a mesh for any equal one, also after the process groups of that mesh have ended.
    """
    return f"run{next(_runs)}"


def end() -> None:
    """End the process groups. Collective."""
    dist.barrier()
    dist.destroy_process_group()


def _rendezvous(group: Group) -> Store:
    """Return a store on a free port of rank 0's host. Collective."""
    hosts = group.broadcast(None if group.rank else socket.gethostname())
    alone = group.broadcast(len(set(group.gather(socket.gethostname()))) <= 1)
    host = "127.0.0.1" if alone else hosts
    store = None
    if group.rank == 0:
        store = TCPStore(host, 0, group.size, is_master=True, wait_for_workers=False)
    port = group.broadcast(store.port if store else None)
    return store or TCPStore(host, port, group.size, is_master=False)
