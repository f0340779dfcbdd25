"""A server's updates are those of torch's optimizers, whatever pieces the weights are cut into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from strategies.parameter_server.update import fused_class, refusal, update_maker

Make = Callable[[list[torch.Tensor]], torch.optim.Optimizer]
FUSED: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1),
}
OPTIMIZERS: dict[str, Make] = FUSED | {
    "dampening": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "implementation": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}


@pytest.mark.parametrize("divisor", [None, 3.0])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_equals_the_optimizer_while_its_learning_rate_changes(make: Make, divisor: float | None) -> None:
    assert_equals_the_optimizer(make, divisor)


def assert_equals_the_optimizer(make: Make, divisor: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    theirs = torch.nn.Parameter(torch.randn(1000, generator=generator))
    ours, gradient = theirs.detach().clone(), torch.empty(1000)
    optimizer = make([theirs])
    assert refusal(optimizer) is None
    (group,) = optimizer.param_groups
    update = update_maker(optimizer, group)(list(ours.split(300)), list(gradient.split(300)))
    for _ in range(5):
        gradient.copy_(torch.randn(1000, generator=generator))
        theirs.grad = gradient / (divisor or 1)
        optimizer.step()
        update(None if divisor is None else torch.tensor(divisor))
        group["lr"] *= 0.7
        update.change(group)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-6)


def changed_signature(weights: object, gradients: object) -> None:
    """A kernel as another version of torch may have it."""


@pytest.mark.parametrize("other", [None, changed_signature])
@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED)
def test_without_torchs_private_kernels_the_optimizers_own_class_updates(
    make: Make, other: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    (group,) = (optimizer := make([torch.nn.Parameter(torch.zeros(2))])).param_groups
    assert fused_class(optimizer, group)
    for name in ("_fused_sgd_", "_fused_adam_", "_fused_adamw_"):
        if other:
            monkeypatch.setattr(torch, name, other)
        else:
            monkeypatch.delattr(torch, name)
    assert fused_class(optimizer, group) is None
    assert_equals_the_optimizer(make, 3.0)


class RowNorm(torch.optim.SGD):
    """Normalises each tensor's gradient, as LARS and LAMB do."""

    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            parameter.grad /= parameter.grad.norm()
        return super().step(closure)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adafactor(p),
        lambda p: torch.optim.LBFGS(p),
        lambda p: torch.optim.SparseAdam(p),
        lambda p: RowNorm(p, lr=0.0),
    ],
    ids=["Adafactor", "LBFGS", "SparseAdam", "RowNorm"],
)
def test_an_optimizer_that_is_not_elementwise_is_refused_by_name(make: Make, request: pytest.FixtureRequest) -> None:
    reason = refusal(make([torch.nn.Parameter(torch.zeros(4, 6))]))
    assert reason
    assert request.node.callspec.id in reason
    assert 'server_role="sum"' in reason


def test_an_optimizer_with_state_is_refused() -> None:
    optimizer = FUSED["momentum"]([weights := torch.nn.Parameter(torch.zeros(3))])
    weights.grad = torch.ones(3)
    optimizer.step()
    assert "state" in str(refusal(optimizer))
