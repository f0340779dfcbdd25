"""A server's updates are those of torch's optimizers, whatever pieces the weights are cut into."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from strategies.parameter_server.update import make_update

Make = Callable[[list[torch.Tensor]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1),
}


@pytest.mark.parametrize("divisor", [None, 3.0])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_equals_the_optimizer(make: Make, divisor: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    theirs = torch.nn.Parameter(torch.randn(1000, generator=generator))
    ours, gradient = theirs.detach().clone(), torch.empty(1000)
    optimizer = make([theirs])
    update = make_update(optimizer, optimizer.param_groups[0], ours.split(300), gradient.split(300))
    for _ in range(5):
        gradient.copy_(torch.randn(1000, generator=generator))
        theirs.grad = gradient / (divisor or 1)
        optimizer.step()
        update(None if divisor is None else torch.tensor(divisor))
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-6)
