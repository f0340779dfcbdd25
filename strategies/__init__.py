"""The strategies: how gradients of many ranks become one update. They know tensors and ranks, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from strategies import catalogue, join
from strategies.group import Group, MPIGroup, SingleGroup
from strategies.options import Options

if TYPE_CHECKING:
    from strategies.base import Strategy

__all__ = ["Group", "MPIGroup", "Options", "SingleGroup", "create"]


def create(
    name: str, group: Group | None = None, options: Options | None = None, timeout_s: float = 10.0, **knobs: Any
) -> Strategy:
    """Return the strategy called `name` for this rank; imports its library only now. Collective.

    In a script of your own give the name and the knobs of `Options` alone. It then joins the ranks that mpirun started,
    sets what MPI reads when it starts (so call this before you import mpi4py), and lets the failure of one rank end
    all. `timeout_s`: how long ranks may wait for each other in `prepare()`, seconds.
    """
    if group is None:
        group = join.join(timeout_s)
    entry = catalogue.find(catalogue.full_name(name))
    strategy: Strategy = catalogue.load(entry.path)(group, options or Options(**knobs))
    if isinstance(group, join.TimeoutGroup):
        from strategies import uneven

        uneven.watch(strategy, group.comm, entry)
        join.watch_exit(strategy, group.comm)
    return strategy
