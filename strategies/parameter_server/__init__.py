"""A synchronous parameter server on mpi4py: workers push gradients, dedicated servers push back weights."""

from __future__ import annotations

from strategies.base import Group, Options, Strategy


def create_parameter_server(group: Group, options: Options) -> Strategy:
    """Return the worker or the server that this rank is: the last `num_servers` ranks serve. Collective."""
    from mpi4py import MPI

    from strategies.parameter_server.plan import Roles
    from strategies.parameter_server.server import ParameterServer
    from strategies.parameter_server.worker import ParameterServerWorker

    comm = MPI.COMM_WORLD.Dup()
    roles = Roles.dedicated(comm.size, options.num_servers)
    if comm.rank in roles.servers:
        return ParameterServer(group, options, comm, roles)
    return ParameterServerWorker(group, options, comm, roles)
