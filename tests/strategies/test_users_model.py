"""A user's own model, optimizer and scheduler train on a parameter server, and with ZeRO, as they do without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn
from torch.optim import lr_scheduler

from strategies.base import Strategy
from strategies.group import SingleGroup
from strategies.options import Options
from strategies.parameter_server.plan import Roles
from strategies.parameter_server.worker import ParameterServerWorker
from strategies.zero import Zero

STEPS = 6
Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]] = {
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.5),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer, 0.2, total_steps=STEPS + 1, cycle_momentum="initial_accumulator_value" not in optimizer.defaults
    ),
}


class Model(nn.Module):
    """Convolution, batch norm (buffers), frozen weights, and a layer that only some passes use."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(3, 8, 3, bias=False)  # its gradient before a batch norm is rounding alone
        self.norm = nn.BatchNorm1d(8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.sometimes = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, number: int) -> Tensor:
        """(B, 3, T) -> (B, 2)."""
        x = self.frozen(self.norm(self.convolution(x)).mean(2)).relu()
        return self.head(self.sometimes(x) if number % 2 == 0 else x)


def build(make: Make) -> tuple[Model, torch.optim.Optimizer]:
    """The model and the optimizer, always with the same weights; the head's group has a rate of its own."""
    torch.manual_seed(0)
    model = Model()
    head = list(model.head.parameters())
    others = [p for p in model.parameters() if p.requires_grad and not any(p is each for each in head)]
    return model, make([{"params": others}, {"params": head, "lr": 0.02}])


def loss_of(model: nn.Module, step: int) -> Tensor:
    x = torch.randn(16, 3, 5, generator=torch.Generator().manual_seed(step))
    loss: Tensor = (model(x, step) - x.mean((1, 2))[:, None]).square().mean()
    return loss


@pytest.fixture
def strategy() -> ParameterServerWorker:
    """A worker and the server on its rank, real MPI messages between them."""
    options = Options(placement="colocated", chunk_bytes=1024)
    return ParameterServerWorker(SingleGroup(), options, MPI.COMM_SELF.Dup(), Roles.make("colocated", 1, 0))


@pytest.fixture
def zero() -> Zero:
    """One rank of ZeRO."""
    return Zero(SingleGroup(), Options(segment_bytes=256))


@pytest.mark.parametrize("kind", ["strategy", "zero"])
@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_state_dict_is_the_one_of_a_plain_loop(
    make: Make, schedule: Callable[[Any], Any], kind: str, request: pytest.FixtureRequest
) -> None:
    strategy: Strategy = request.getfixturevalue(kind)
    (model, optimizer), expected = build(make), plain(make, schedule)
    trained = strategy.prepare(model, optimizer)
    scheduler = schedule(optimizer)
    for step in range(STEPS):
        loss_of(trained, step).backward()
        strategy.synchronize()
        strategy.step()
        scheduler.step()
        torch.testing.assert_close(trained.state_dict(), next(expected), rtol=1e-4, atol=1e-6)
    strategy.close()
    loss_of(trained, 0).backward()  # the model is the user's again
    assert model.head.weight.grad is not None


def test_parameters_are_the_newest_weights(strategy: ParameterServerWorker) -> None:
    model, optimizer = build(OPTIMIZERS["sgd"])
    trained = strategy.prepare(model, optimizer)
    for step, expected in enumerate(
        plain(OPTIMIZERS["sgd"], lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda _: 1.0))
    ):
        loss_of(trained, step).backward()
        strategy.synchronize()
        strategy.step()
        named = {name: parameter.detach().clone() for name, parameter in trained.named_parameters()}
        torch.testing.assert_close(named, {name: expected[name] for name in named}, rtol=1e-4, atol=1e-6)
    strategy.close()


def plain(make: Make, schedule: Callable[[Any], Any]) -> Iterator[dict[str, Tensor]]:
    """The weights after each step of a loop without psring, which gives missing gradients zeros as psring does."""
    model, optimizer = build(make)
    scheduler = schedule(optimizer)
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=False)
        loss_of(model, step).backward()
        for parameter in model.sometimes.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        optimizer.step()
        scheduler.step()
        yield {name: value.clone() for name, value in model.state_dict().items()}


def test_what_servers_cannot_follow_is_refused_by_name(strategy: ParameterServerWorker) -> None:
    model, optimizer = build(OPTIMIZERS["sgd"])
    strategy.prepare(model, optimizer)
    optimizer.param_groups[0]["momentum"] = None
    with pytest.raises(RuntimeError, match="momentum"):
        loss_of(model, 0).backward()
    optimizer.param_groups[0]["momentum"] = 0.9
    model.frozen.requires_grad_(True)
    strategy._pushing = False
    with pytest.raises(RuntimeError, match="requires_grad"):
        loss_of(model, 0).backward()


def test_an_optimizer_that_servers_cannot_run_is_refused_at_once(strategy: ParameterServerWorker) -> None:
    with pytest.raises(ValueError, match=r'Adafactor .* server_role="sum"'):
        strategy.prepare(*build(lambda p: torch.optim.Adafactor(p)))


def test_zero_refuses_an_optimizer_that_is_not_elementwise(zero: Zero) -> None:
    with pytest.raises(ValueError, match=r"zero: Adafactor .* use another strategy"):
        zero.prepare(*build(lambda p: torch.optim.Adafactor(p)))
