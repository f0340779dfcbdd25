"""Many steps alone, then one exchange: training over links that cannot carry every gradient."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from strategies.base import apply_mean_gradient
from strategies.parameter_server.worker import ParameterServerWorker


class LocalStepsWorker(ParameterServerWorker):
    """Trains alone for `sync_every` steps, then pushes how far its weights have moved, and takes the servers'.

    The servers see that movement as a gradient (`outer_optimizer`). It leaves as a whole after the last of the steps,
    and travels until the next forward needs the new weights. The worker's own optimizer keeps its state (Douillard et
    al., DiLoCo, 2023).
    """

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """As every worker; and remember the weights that all workers set out from. Collective."""
        module = super().prepare(model, optimizer)
        self._set_out_from = [parameter.detach().clone() for parameter in self._parameters]
        self._steps_alone = 0
        return module

    def _gradient_ready(self, index: int, parameter: Tensor) -> None:
        """Gradients stay here."""

    def synchronize(self) -> None:
        """Nothing travels between two exchanges."""

    def step(self) -> None:
        """Apply this worker's gradient; after enough steps, exchange."""
        apply_mean_gradient(self._parameters, self._optimizer.step, self.options, self.scaler)
        self._optimizer.zero_grad()
        self._wait_in_forward_s = 0.0
        self._steps_alone += 1
        if self._steps_alone == self.options.sync_every:
            self._steps_alone = 0
            self._exchange()

    def _exchange(self) -> None:
        """Push every parameter's movement; the next forward takes the new weights."""
        self._first_gradient_at = time.perf_counter()
        for index, parameter in enumerate(self._parameters):
            self._out.put(self._push_views[index], self._set_out_from[index] - parameter.detach())
            self._mark_ready(index)
        self._begin_step()

    def _take(self, index: int) -> None:
        """As every worker; the weights that come are where the next steps set out from."""
        if not self._taken[index]:
            super()._take(index)
            self._set_out_from[index].copy_(self._parameters[index].detach())
