"""A parameter server on mpi4py: workers push gradients, servers push back weights."""

from __future__ import annotations

from strategies.base import Strategy
from strategies.group import Group
from strategies.options import Options


def create_parameter_server(group: Group, options: Options) -> Strategy:
    """Return the worker (which may also serve) or the server that this rank is. Collective."""
    from strategies.parameter_server.dedicated import ParameterServer
    from strategies.parameter_server.local_steps import LocalStepsWorker
    from strategies.parameter_server.plan import Roles
    from strategies.parameter_server.worker import ParameterServerWorker

    comm = group.comm.Dup()
    roles = Roles.make(options.placement, comm.size, options.num_servers)
    if comm.rank not in roles.workers:
        return ParameterServer(group, options, comm, roles)
    make = ParameterServerWorker if options.sync_every == 1 else LocalStepsWorker
    return make(group, options, comm, roles)
