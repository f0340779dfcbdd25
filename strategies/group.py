"""The ranks of one run, as the harness and a strategy's set-up talk to each other. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mpi4py import MPI


class Group(Protocol):
    """The ranks of one run. Objects are pickled: never call these inside a timed step."""

    rank: int
    size: int

    @property
    def comm(self) -> MPI.Intracomm:
        """The communicator of these ranks; ValueError where they have none."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value in rank order on rank 0, an empty list elsewhere. Collective."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value everywhere. Collective."""
        ...

    def barrier(self) -> None:
        """Return once every rank is here. Collective."""
        ...


class SingleGroup:
    """A group of one process, which needs no library until a strategy asks for its communicator."""

    rank = 0
    size = 1

    @property
    def comm(self) -> MPI.Intracomm:
        """MPI's communicator of this process alone."""
        from mpi4py import MPI

        return MPI.COMM_SELF

    def gather(self, value: Any) -> list[Any]:
        """Return the one value."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """Return the value."""
        return value

    def barrier(self) -> None:
        """Return at once."""


class MPIGroup:
    """The ranks of a communicator, usually ``MPI.COMM_WORLD``."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm = comm
        self.rank = comm.rank
        self.size = comm.size

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value in rank order on rank 0, an empty list elsewhere. Collective."""
        return self.comm.gather(value) or []

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value everywhere. Collective."""
        return self.comm.bcast(value)

    def barrier(self) -> None:
        """Return once every rank is here. Collective."""
        self.comm.Barrier()
