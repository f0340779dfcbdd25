"""NCCL's rule: no two ranks of a communicator on one GPU."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import torch

from strategies.base import UnusableOptions
from strategies.group import Group

Place = tuple[str, str]  # host, the GPU's UUID


def require_own_gpu(group: Group, device: torch.device) -> None:
    """Raise UnusableOptions on every rank if two ranks compute on one GPU. Collective; nothing to check on a CPU.

    NCCL itself ends such ranks with "Duplicate GPU detected" (NCCL documentation, ncclCommInitRank).
    """
    if device.type != "cuda":
        return
    own = (socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid))
    sharing = ranks_sharing_a_gpu(group.broadcast(group.gather(own)))
    if sharing:
        first, second, host = sharing
        raise UnusableOptions(
            f"ranks {first} and {second} use the same GPU of {host}, and NCCL needs one per rank; "
            "start no more ranks per node than it has GPUs, or use --device cpu"
        )


def ranks_sharing_a_gpu(places: Sequence[Place]) -> tuple[int, int, str] | None:
    """Return the first two ranks that compute on one GPU and their host, None if each rank has its own."""
    first: dict[Place, int] = {}
    for rank, place in enumerate(places):
        if place in first:
            return first[place], rank, place[0]
        first[place] = rank
    return None
