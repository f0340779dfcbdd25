"""Ray's synchronous actor parameter server, as Ray's documentation writes it.

https://docs.ray.io/en/latest/ray-core/examples/plot_parameter_server.html ("Synchronous Parameter Server Training"):
gradients and weights pass as NumPy arrays through Ray's object store. Changed: the model, the source of
gradients, and that the driver waits for every step, to time it.
"""

from __future__ import annotations

import numpy as np
import payload
import ray
import torch

from bench.config import RunConfig

Weights = dict[str, torch.Tensor]


@ray.remote
class ParameterServer:
    """Sums gradients and updates the model."""

    def __init__(self, config: RunConfig) -> None:
        self.model = payload.model(config)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=payload.LEARNING_RATE, momentum=payload.MOMENTUM)

    def apply_gradients(self, *gradients: list[np.ndarray]) -> Weights:
        """Update the model by the sum of all workers' gradients, return its weights."""
        summed_gradients = [np.stack(gradient_zip).sum(axis=0) for gradient_zip in zip(*gradients, strict=True)]
        self.optimizer.zero_grad()
        for gradient, parameter in zip(summed_gradients, self.model.parameters(), strict=True):
            parameter.grad = torch.from_numpy(gradient)
        self.optimizer.step()
        return self.get_weights()

    def get_weights(self) -> Weights:
        """Return the weights."""
        return {name: value.cpu() for name, value in self.model.state_dict().items()}


@ray.remote
class DataWorker:
    """Computes gradients at given weights."""

    def __init__(self, config: RunConfig, worker: int) -> None:
        self.model = payload.model(config)
        self.gradients = payload.gradients(config, worker)
        self.step = 0

    def compute_gradients(self, weights: Weights) -> list[np.ndarray]:
        """Load the weights and return one step's gradients."""
        self.model.load_state_dict(weights)
        self.step += 1
        return [gradient.numpy() for gradient in self.gradients(self.model, self.step - 1)]


def main() -> None:
    """Train and print the step times."""
    config = RunConfig.model_validate_json(payload.arguments().config)
    ray.init(
        num_cpus=config.num_workers + 1, include_dashboard=False, logging_level="ERROR", object_store_memory=512 << 20
    )
    ps = ParameterServer.remote(config)
    workers = [DataWorker.remote(config, worker) for worker in range(config.num_workers)]
    current_weights = ps.get_weights.remote()
    ray.wait([current_weights])
    stopwatch = payload.Stopstopwatch(config)
    for _ in range(config.total_steps):
        gradients = [worker.compute_gradients.remote(current_weights) for worker in workers]
        current_weights = ps.apply_gradients.remote(*gradients)
        ray.wait([current_weights])
        stopwatch.step_ended()
    stopwatch.report()
    ray.shutdown()


if __name__ == "__main__":
    main()
