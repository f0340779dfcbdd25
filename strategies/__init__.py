"""The subjects: know tensors and ranks, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strategies import catalogue
from strategies.group import Group, MPIGroup, SingleGroup
from strategies.options import Options

if TYPE_CHECKING:
    from strategies.base import Strategy

__all__ = ["Group", "MPIGroup", "Options", "SingleGroup", "create"]


def create(name: str, group: Group, options: Options) -> Strategy:
    """Return the strategy called `name` for this rank; imports its library only now. Collective."""
    strategy: Strategy = catalogue.load(catalogue.find(catalogue.full_name(name)).path)(group, options)
    return strategy
