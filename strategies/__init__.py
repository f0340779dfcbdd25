"""The subjects: know tensors and ranks, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strategies.group import Group, MPIGroup, SingleGroup
from strategies.options import Options

if TYPE_CHECKING:
    from strategies.base import Strategy

__all__ = ["Group", "MPIGroup", "Options", "SingleGroup", "create"]


def create(name: str, group: Group, options: Options) -> Strategy:
    """Return the strategy called `name` for this rank; imports its library only now. Collective."""
    if name == "local":
        from strategies.local import Local

        return Local(group, options)
    if name == "independent":
        from strategies.independent import Independent

        return Independent(group, options)
    if name == "ddp":
        from strategies.ddp import DDP

        return DDP(group, options)
    if name == "ring_allreduce":
        from strategies.ring_allreduce import RingAllreduce

        return RingAllreduce(group, options)
    if name == "mpi_ring":
        from strategies.mpi_ring import MPIRing

        return MPIRing(group, options)
    if name == "parameter_server":
        from strategies.parameter_server import create_parameter_server

        return create_parameter_server(group, options)
    raise ValueError(f"no strategy is called {name!r}")
