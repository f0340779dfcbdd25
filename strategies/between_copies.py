"""Parameter servers between the copies of a split model: what each part's ranks use instead of an allreduce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from strategies.base import Observed
from strategies.group import Group, MPIGroup
from strategies.options import Options
from strategies.parameter_server import create_parameter_server

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class ServersOfPart:
    """Colocated servers on the ranks that hold one part, which only sum: every copy receives the mean gradient.

    The optimizer stays on the workers, because a global norm needs all parts. Gradients are pushed after the last
    backward pass of a step, as those of the allreduce are.
    """

    def __init__(self, group: Group, options: Options, part: int, parameters: Sequence[Tensor]) -> None:
        """Start the servers; the ranks of every part call it. Collective."""
        self._comm = cast("Intracomm", group.comm.Split(part, group.rank))
        served = options.model_copy(
            update={"placement": "colocated", "num_servers": 0, "server_role": "sum", "gradient_accumulation": 1}
        )
        self._worker = create_parameter_server(MPIGroup(self._comm), served)
        self._held = [nn.Parameter(parameter.detach()) for parameter in parameters]
        self._worker.prepare(nn.ParameterList(self._held), torch.optim.SGD(self._held))

    def observe(self) -> Observed:
        """Return what this rank has sent to and received from the others, and whether in shared memory."""
        return self._worker.observe()

    def average(self, gradients: Sequence[Tensor]) -> None:
        """Replace gradients by their means over the copies."""
        with self._worker.accumulate(last=True):
            torch.autograd.backward(self._held, list(gradients))  # fires the hooks by which the worker pushes
        self._worker.synchronize()
        for parameter, gradient in zip(self._held, gradients, strict=True):
            assert parameter.grad is not None  # the worker has put the mean there
            gradient.copy_(parameter.grad)
            parameter.grad = None

    def close(self) -> None:
        """End the servers. Collective."""
        self._worker.close()
        self._comm.Free()
