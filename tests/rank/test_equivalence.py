"""The equivalence gate catches each seeded bug in every strategy family, precision and optimizer, and no honest run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.config import RunConfig
from bench.rank.equivalence import Verdict
from bench.rank.rehearsal import GRADIENT_STEPS, rehearsals
from tests.support.virtual import HONEST, Plant, run_world, watched
from tests.support.worlds import verdict_on

FAMILIES: dict[str, dict[str, object]] = {
    "server": {"strategy": "parameter_server", "num_servers": 1, "chunk_bytes": 1024},
    "ring": {"strategy": "mpi_ring", "segment_bytes": 512},
    "library": {"strategy": "ddp"},
    "sharded": {"strategy": "zero", "segment_bytes": 512},
}
OPTIMIZERS: dict[str, dict[str, object]] = {
    "adamw": {"optimizer": "adamw"},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.1},
}
TINY: dict[str, object] = {
    "n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 4, "batch_size": 2, "vocab_size": 32, "data": "synthetic",
    "num_workers": 2, "steps": 4, "warmup_steps": 0,
}  # fmt: skip


def gate(config: RunConfig, plant: Plant = HONEST) -> Verdict:
    """What the gate says of a run whose every rank has a bug planted, or none."""
    verdict = Verdict(0.0)
    for each in rehearsals(config):
        if verdict.passed:
            found = verdict_on(each, *watched(run_world(each, plant=plant)))
            verdict = max(verdict, found, key=lambda verdict: verdict.error)
    return verdict


def tiny(family: str, update: str, **knobs: object) -> RunConfig:
    return RunConfig.model_validate({**TINY, **FAMILIES[family], **OPTIMIZERS[update], **knobs})


def scaled(factor: Callable[[Any], float]) -> Plant:
    """The loss of every worker is multiplied before backward, and so is its gradient."""

    def plant(strategy: Any) -> None:
        honest = strategy.scaled
        strategy.scaled = lambda loss: honest(loss) * factor(strategy)

    return Plant(strategy=plant)


def optimizing(**settings: Callable[[Any], object]) -> Plant:
    """Wherever the optimizer runs, it has other settings."""

    def plant(optimizer: torch.optim.Optimizer, _: nn.Module) -> None:
        for group in optimizer.param_groups:
            group.update({name: change(group[name]) for name, change in settings.items() if name in group})

    return Plant(optimizer=plant)


def never_updating(name: str) -> Plant:
    """One parameter is forgotten."""

    def plant(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if p is not model.get_parameter(name)]

    return Plant(optimizer=plant)


def gradients(change: Callable[[str, list[Tensor]], Tensor], workers: tuple[int, ...] = (1,)) -> Plant:
    """Some workers' gradients are replaced by what `change` makes of all of a parameter's gradients so far."""

    def plant(worker: int, model: nn.Module) -> None:
        for name, parameter in model.named_parameters() if worker in workers else ():
            parameter.register_hook(partial(kept, name, []))  # type: ignore[no-untyped-call]

    def kept(name: str, so_far: list[Tensor], gradient: Tensor) -> Tensor:
        so_far.append(gradient.clone())
        return change(name, so_far)

    return Plant(model=plant)


def without_first_rows(name: str, so_far: list[Tensor]) -> Tensor:
    if name == "blocks.0.fc.weight":
        so_far[-1][:4] = 0
    return so_far[-1]


def losing_last(lost: int) -> Plant:
    """The last updates are not applied, on servers or on workers."""

    def plant(strategy: Any) -> None:
        honest = strategy.prepare
        strategy.prepare = lambda *given: (honest(*given), limit(strategy))[0]

    def limit(strategy: Any) -> None:
        updates = strategy.options.total_steps - lost
        server = getattr(strategy, "_server", None)
        if server:
            server._shard.step = first_calls(server._shard.step, updates * len(server._shard._gradient_of))
        elif strategy.options.strategy == "zero":
            strategy._update = first_calls(strategy._update, updates * len(strategy._blocks))
        elif strategy.options.strategy != "parameter_server":
            strategy._apply = first_calls(strategy._apply, updates)

    def first_calls(act: Callable[..., None], number: int) -> Callable[..., None]:
        calls: list[object] = []
        return lambda *given: act(*given) if calls.append(given) or len(calls) <= number else None

    return Plant(strategy=plant)


BUGS = {
    "sum instead of mean": scaled(lambda strategy: strategy.num_workers),
    "gradient times 10": scaled(lambda strategy: 10),
    "weight decay": optimizing(weight_decay=lambda _: 0.01),
    "beta2, or momentum": optimizing(betas=lambda _: (0.9, 0.999), momentum=lambda _: 0.95),
    "last update lost": losing_last(1),
    "last two updates lost": losing_last(2),
    "one bias never updated": never_updating("blocks.0.fc.bias"),
    "learning rate + 20 %": optimizing(lr=lambda rate: 1.2 * rate),
    "a chunk of one worker missing": gradients(without_first_rows),
    "stale by one": gradients(lambda _, so_far: so_far[-2:][0], workers=(0, 1)),
    "one worker stale by one": gradients(lambda _, so_far: so_far[-2:][0]),
    "a worker dropped": gradients(lambda _, so_far: torch.zeros_like(so_far[-1])),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_bug_is_caught(family: str, precision: str, optimizer: str) -> None:
    config = tiny(family, optimizer, precision=precision)
    assert gate(config).passed
    assert [name for name, bug in BUGS.items() if gate(config, bug).passed] == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wire_dtype", ["fp16", "bf16"])
def test_every_bug_is_caught_on_a_wire_of_16_bits(family: str, wire_dtype: str) -> None:
    config = tiny(family, "adamw", precision="bf16", wire_dtype=wire_dtype)
    assert gate(config).passed
    assert [name for name, bug in BUGS.items() if gate(config, bug).passed] == []


@pytest.mark.parametrize("family", ["ring", "library", "sharded"])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    "knobs",
    [
        {"wire_dtype": "fp16", "precision": "fp16"},
        {"wire_dtype": "bf16", "clip_norm": 0.3, **OPTIMIZERS["sgd"]},
        {"wire_dtype": "fp16", "gradient_accumulation": 2, "clip_norm": 0.3, "precision": "bf16"},
        {"weight_decay": 0.1, "gradient_accumulation": 2},
    ],
    ids=str,
)
def test_no_honest_run_is_stopped(family: str, workers: int, knobs: dict[str, object]) -> None:
    """Servers: tests/strategies/test_parameter_server.py."""
    verdict = gate(tiny(family, "adamw", num_workers=workers, **knobs))
    assert verdict.passed, verdict


def test_clipping_hides_no_constant_factor() -> None:
    config = tiny("library", "sgd", clip_norm=1e-3)
    assert gate(config).passed
    assert not gate(config, BUGS["gradient times 10"]).passed


def test_the_gate_names_where_a_run_departs() -> None:
    said = gate(tiny("library", "sgd"), BUGS["one bias never updated"]).failure()
    assert "blocks.0.fc.bias in step 1 differs by" in said
    assert "times what rounding explains" in said


def test_a_large_model_is_watched_for_fewer_steps() -> None:
    def steps(**shape: object) -> list[int]:
        return [each.total_steps for each in rehearsals(RunConfig.model_validate({"steps": 50, **shape}))]

    assert steps(model="gpt-nano") == [10, GRADIENT_STEPS]
    assert steps(model="gpt-nano", optimizer="sgd") == [10]
    assert steps(n_layer=24, n_embd=1024, n_head=16, model="gpt-nano", optimizer="sgd") == [3]
