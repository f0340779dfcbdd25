"""Every strategy in one process without a launcher: the smoke tests. All must train as `local` does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.distributed import DebugLevel, set_debug_level

from bench.config import RunConfig
from bench.ledger import predict
from bench.rank.rehearsal import Watched
from bench.rank.train import build_model
from bench.rank.weights import snapshot
from strategies import create
from strategies.base import Strategy
from strategies.group import SingleGroup
from strategies.options import Options
from strategies.parameter_server.worker import ParameterServerWorker
from tests.support.worlds import CPU, assert_equivalent, served_alone, served_in_one_process, small, trained

KNOBS: dict[str, dict[str, object]] = {
    "plain": {},
    "momentum": {"optimizer": "sgd", "learning_rate": 0.1},
    "accumulation": {"gradient_accumulation": 2},
    "clipping": {"clip_norm": 0.5},
    "both, decay": {"gradient_accumulation": 2, "clip_norm": 0.5, "weight_decay": 0.1, "optimizer": "sgd"},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
}


def alone(config: RunConfig) -> Watched:
    return trained(config, create(config.strategy, SingleGroup(), config))


@pytest.mark.parametrize("strategy", ["local", "independent", "ring_allreduce", "mpi_ring", "ddp", "zero", "fsdp"])
@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
def test_one_worker_trains_the_reference_model(strategy: str, knobs: dict[str, object]) -> None:
    config = small(strategy=strategy, **knobs)
    assert_equivalent(config, alone(config))


def test_ddp_ignores_the_users_debug_level() -> None:
    set_debug_level(DebugLevel.DETAIL)  # as TORCH_DISTRIBUTED_DEBUG=DETAIL does
    try:
        config = small(strategy="ddp")
        assert_equivalent(config, alone(config))
    finally:
        set_debug_level(DebugLevel.OFF)


@pytest.mark.parametrize("wire_dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
def test_a_server_and_its_worker_train_the_reference_model(wire_dtype: str, knobs: dict[str, object]) -> None:
    config = served_alone(wire_dtype=wire_dtype, chunk_bytes=4096, **knobs)
    watched, strategy = served_in_one_process(config)
    assert_equivalent(config, watched)
    assert strategy.observe().moved / config.total_steps == predict(config).worker


@pytest.mark.parametrize("wire_dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("strategy", ["ring_allreduce", "mpi_ring", "ddp", "zero", "fsdp"])
def test_a_wire_of_one_worker_carries_nothing(strategy: str, wire_dtype: str) -> None:
    config = small(strategy=strategy, wire_dtype=wire_dtype)
    assert_equivalent(config, alone(config))
    assert predict(config).worker.bytes_sent == 0


def test_two_runs_through_a_server_are_bitwise_equal() -> None:
    config = served_alone(chunk_bytes=1024)
    first, second = (served_in_one_process(config)[0].weights[-1] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_non_finite_gradient_is_skipped_by_all_and_halves_the_scale() -> None:
    for make in (fp16_local, fp16_server):
        config, train_once = make()
        watched, strategy = train_once(config)
        weights = watched.weights[-1]
        initial = snapshot(build_model(config, CPU))
        assert all(torch.equal(weights[name], initial[name]) for name in initial)
        assert strategy.scaler.scale == 2.0**15 * 2.0 ** (1 - config.total_steps)


def poison(strategy: Strategy) -> None:
    strategy.scaled = lambda loss: loss * float("inf")  # type: ignore[method-assign]


def fp16_local() -> tuple[RunConfig, Callable[[RunConfig], tuple[Watched, Strategy]]]:
    def run(config: RunConfig) -> tuple[Watched, Strategy]:
        strategy = create("local", SingleGroup(), Options(precision="fp16"))
        poison(strategy)
        return trained(config, strategy), strategy

    return small(precision="fp16"), run


def fp16_server() -> tuple[RunConfig, Callable[[RunConfig], tuple[Watched, Strategy]]]:
    def run(config: RunConfig) -> tuple[Watched, Strategy]:
        original = ParameterServerWorker.scaled
        ParameterServerWorker.scaled = lambda self, loss: loss * float("inf")  # type: ignore[method-assign]
        try:
            return served_in_one_process(config)
        finally:
            ParameterServerWorker.scaled = original  # type: ignore[method-assign]

    return served_alone(precision="fp16"), run


def test_an_unknown_strategy_is_an_error() -> None:
    with pytest.raises(ValueError, match="no strategy is called 'ring'"):
        create("ring", SingleGroup(), Options())
