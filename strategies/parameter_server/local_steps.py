"""Several local steps, then one exchange: training over links that cannot carry every gradient."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from strategies.gradients import apply_mean_gradient
from strategies.parameter_server.worker import ParameterServerWorker


class LocalStepsWorker(ParameterServerWorker):
    """Trains locally for `sync_every` steps, then pushes the change of its weights and pulls the servers' weights.

    The servers treat the change as a gradient (`outer_optimizer`). It is pushed as a whole after the last local step
    and is in flight until the next forward needs the new weights. The worker's own optimizer keeps its state (Douillard
    et al., DiLoCo, 2023).
    """

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Prepare as every worker, and keep the weights that all workers start from. Collective."""
        module = super().prepare(model, optimizer)
        self._start_weights = [parameter.detach().clone() for parameter in self._parameters]
        self._local_steps = 0
        return module

    def _gradient_ready(self, index: int, parameter: Tensor) -> None:
        """Push nothing: gradients stay on this worker."""

    def synchronize(self) -> None:
        """Do nothing: between two exchanges there is nothing to wait for."""

    def step(self) -> None:
        """Apply this worker's gradient; after `sync_every` steps, exchange."""
        apply_mean_gradient(self._parameters, self._optimizer.step, self.options.clip_norm, self.scaler)
        self._optimizer.zero_grad()
        self.wait_in_forward_s = 0.0
        self._local_steps += 1
        if self._local_steps == self.options.sync_every:
            self._local_steps = 0
            self._exchange()

    def _exchange(self) -> None:
        """Push the change of every parameter; the next forward takes over the new weights."""
        self._first_gradient_at = time.perf_counter()
        for index, parameter in enumerate(self._parameters):
            self._pulled.expect(index)
            self._pushed.write(index, self._start_weights[index] - parameter.detach())
        self._pushed.end_step()

    def _take(self, index: int) -> None:
        """Take over as every worker; the next local steps start from these weights."""
        if not self._pulled.taken[index]:
            super()._take(index)
            self._start_weights[index].copy_(self._parameters[index].detach())
