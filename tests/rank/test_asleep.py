"""Laws of emulated compute: a strategy's hooks fire in the order and at the time of real training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpi4py import MPI
from torch import Tensor, nn

from bench.config import RunConfig
from bench.durations import by_flops, durations, forward_flops, slowdown
from bench.rank import asleep as room
from bench.rank.asleep import EmulatedGPT, EmulatedOptimizer
from bench.rank.build import build_training, load_data
from bench.rank.train import build_model, train
from bench.records import StepRecord
from strategies import create
from strategies.base import Strategy
from strategies.catalogue import CATALOGUE
from strategies.gradients import on_gradient
from strategies.group import SingleGroup
from strategies.parameter_server.plan import Roles
from strategies.parameter_server.worker import ParameterServerWorker
from tests.support.worlds import CPU, small

Event = tuple[str, str]


def emulated(**values: object) -> RunConfig:
    times = {"emulated_forward_s": 0.001, "emulated_backward_s": 0.002}
    return small(**{"compute": "emulated", "check_equivalence": False, **times, **values})


def asleep(config: RunConfig) -> EmulatedGPT:
    return EmulatedGPT(config, durations(config), worker=0)


def watch(model: nn.Module, events: list[Event]) -> None:
    """Record when forward has passed a module, when backward reaches a layer, and when a gradient is ready."""

    def output_of(name: str) -> Callable[..., None]:
        def returned(module: nn.Module, _: object, output: Tensor) -> None:
            events.append(("forward", name))
            if next(module.parameters(recurse=False), None) is not None and not hasattr(output, "watched"):
                output.watched = True  # type: ignore[attr-defined]  # emulated layers return the same one in every pass
                output.register_hook(lambda _: events.append(("backward", name)))

        return returned

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(output_of(name))
    for name, parameter in model.named_parameters():
        on_gradient(parameter, lambda _, name=name: events.append(("gradient", name)))  # type: ignore[misc]


def steps_of(config: RunConfig, strategy: Strategy, events: list[Event]) -> Iterator[StepRecord]:
    model, optimizer = build_training(config, strategy, CPU)
    module = strategy.prepare(model, optimizer)
    watch(model, events)
    yield from train(config, module, strategy, load_data(config), CPU)
    strategy.close()


def trace(config: RunConfig) -> list[Event]:
    """Return all events of a run of one worker, with what the strategy sends."""
    events: list[Event] = []
    if config.strategy != "parameter_server":
        strategy = create(config.strategy, SingleGroup(), config)
        spy(strategy, events)
        list(steps_of(config, strategy, events))
        return events
    comm, roles = MPI.COMM_SELF.Dup(), Roles.make("colocated", 1, 0)
    worker = ParameterServerWorker(SingleGroup(), config, comm, roles)
    list(steps_of(config, worker, events))
    return events


def spy(strategy: Strategy, events: list[Event]) -> None:
    """Record every tensor that Horovod gets, and every bucket that DDP reduces."""

    def noting(honest: Callable[[Any], object]) -> Callable[[Any], object]:
        def noted(what: Tensor | int) -> object:
            events.append(("send", str(what if isinstance(what, int) else what.numel())))
            return honest(what)

        return noted

    for name in {"compress", "_count_ring"} & set(dir(strategy)):
        setattr(strategy, name, noting(getattr(strategy, name)))


KNOBS: dict[str, dict[str, object]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation": 2},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "small buckets": {"bucket_bytes": 4096, "chunk_bytes": 4096},
}


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
@pytest.mark.parametrize("strategy", [name for name, entry in CATALOGUE.items() if entry.splits != "heads"])
def test_events_have_the_order_of_real_training(strategy: str, knobs: dict[str, object]) -> None:
    """Modules, gradients, sends: the tied embedding's gradient comes last, after both its uses."""
    place = {"placement": "colocated"} if strategy == "parameter_server" else {}
    values = {"strategy": strategy, "steps": 2, **place, **knobs}
    awake = trace(small(**values))
    assert trace(emulated(**values)) == awake
    assert trace(small(compute="none", **values)) == awake
    if CATALOGUE[strategy].gathers_weights:
        return  # it has a group's gradients together, and in the last pass of a step only
    gradients = [name for what, name in awake if what == "gradient"]
    assert gradients[-1] == "wte.weight"
    assert len(gradients) == 2 * RunConfig.model_validate({**knobs}).gradient_accumulation * len(set(gradients))


class Clock:
    """A clock that advances only by sleeping and by what a test adds."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(room, "time", made)
    return made


def moments(config: RunConfig, clock: Clock, cost_s: float = 0.0) -> dict[str, float]:
    """When each parameter's gradient is ready in the first pass, from the start of forward; hooks may cost time."""
    model = asleep(config)
    ready: dict[str, float] = {}

    def note(name: str) -> None:
        ready[name] = clock.now
        clock.now += cost_s

    for name, parameter in model.named_parameters():
        on_gradient(parameter, lambda _, name=name: note(name))  # type: ignore[misc]
    began = clock.now
    model().backward()
    return {name: at - began for name, at in ready.items()}


def expected(config: RunConfig) -> dict[str, float]:
    """Return when each gradient must be ready: after forward and backward down to its layer."""
    times = durations(config)
    passed = sum(times.forward_s.values())
    ready = {}
    for layer in reversed(times.backward_s):
        passed += times.backward_s[layer]
        ready[layer] = passed
    return ready


def test_a_gradient_is_ready_at_the_end_of_its_layer(clock: Clock) -> None:
    config = emulated(emulated_forward_s=1.0, emulated_backward_s=2.0)
    due = expected(config)
    for name, at in moments(config, clock).items():
        assert at == pytest.approx(due[name.rpartition(".")[0]])


def test_hooks_overlap_with_backward(clock: Clock) -> None:
    config = emulated(emulated_forward_s=1.0, emulated_backward_s=2.0)
    free, costly = moments(config, clock), moments(config, clock, cost_s=0.001)
    assert costly["wte.weight"] == pytest.approx(
        free["wte.weight"], abs=0.006
    )  # 27 hooks; the last 5 have no compute beside


def test_late_weights_delay_forward(clock: Clock) -> None:
    config = emulated(emulated_forward_s=1.0, emulated_backward_s=2.0)
    model = asleep(config)

    def pull(*_: object) -> None:
        clock.now += 5

    model.get_submodule("blocks.1.fc").register_forward_pre_hook(pull)
    began = clock.now
    model()
    assert clock.now - began == pytest.approx(6)


class Waiting:
    """Stands in for a strategy that waits before layers of forward and says so."""

    wait_in_forward_s = 0.0
    wait_in_backward_s = 0.0


@pytest.mark.parametrize("wait_s", [0.0, 0.0004, 0.02])
def test_waits_delay_forward_by_their_length_however_short(clock: Clock, wait_s: float) -> None:
    config, strategy = emulated(emulated_forward_s=1.0, emulated_backward_s=2.0), Waiting()
    model = EmulatedGPT(config, durations(config), worker=0, strategy=strategy)  # type: ignore[arg-type]
    layers = [model.get_submodule(name) for name, flops in forward_flops(config.gpt).items() if flops > 0]

    def wait(*_: object) -> None:
        clock.now += wait_s
        strategy.wait_in_forward_s += wait_s

    for layer in layers:
        layer.register_forward_pre_hook(wait)
    for _ in range(2):
        strategy.wait_in_forward_s = 0.0
        began = clock.now
        model().backward()
        assert clock.now - began == pytest.approx(3 + wait_s * len(layers))


def test_threads_that_delay_the_end_of_sleeps_change_no_step(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost at most one sleep's lateness in a whole run, also if that is longer than a layer's budget once was."""
    config = emulated(emulated_forward_s=1.0, emulated_backward_s=2.0, emulated_optimizer_s=0.1)
    totals = []
    for late_s in (0.0, 0.003):

        def sleep(seconds: float, late_s: float = late_s) -> None:
            clock.now += seconds + late_s

        monkeypatch.setattr(clock, "sleep", sleep)
        model = asleep(config)
        optimizer = EmulatedOptimizer(model.parameters(), 0.1 / config.gpt.num_parameters, model.schedule)
        began = clock.now
        for _ in range(10):
            model().backward()
            clock.now += 0.0001  # Python between two phases
            optimizer.step()
        totals.append(clock.now - began)
    assert totals[1] - totals[0] <= 0.0031
    assert totals[0] == pytest.approx(31 + 10 * 0.0001)


@given(st.lists(st.integers(1, 30_000), min_size=1, max_size=40))
def test_an_update_takes_equally_long_on_a_worker_and_on_servers(chunks: list[int]) -> None:
    clock, per_number = Clock(), 1e-8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "time", clock)
        patch.setattr(clock, "sleep", lambda seconds: setattr(clock, "now", clock.now + seconds + 5e-5))
        began, schedule = clock.now, room.ServerUpdates()
        for size in chunks:
            zeros = torch.zeros(1).expand(size)
            EmulatedOptimizer([nn.Parameter(zeros, requires_grad=False)], per_number, schedule).step()
        assert clock.now - began == pytest.approx(per_number * sum(chunks), abs=room.MIN_UPDATE_S + 5e-5)


def test_an_update_without_a_given_time_takes_that_of_the_bytes_it_touches() -> None:
    config = emulated(optimizer="adamw")
    assert durations(config).optimizer_s == pytest.approx(config.gpt.num_parameters * 28 / 21.328e9)
    assert durations(emulated(emulated_optimizer_s=0.0)).optimizer_s == 0


@pytest.mark.parametrize("role", ["update", "sum"])
def test_servers_and_workers_sleep_through_the_same_update(role: str) -> None:
    config = emulated(strategy="parameter_server", num_workers=1, num_servers=1, server_role=role)
    ranks = [Waiting(), Waiting()]
    for rank, is_server in zip(ranks, (False, True), strict=True):
        rank.is_server, rank.worker = is_server, 0  # type: ignore[attr-defined]
    devices = [CPU, torch.device("meta")]
    made = [build_training(config, rank, device)[1] for rank, device in zip(ranks, devices, strict=True)]  # type: ignore[arg-type]
    assert {type(each) for each in made} == {EmulatedOptimizer}
    (rate,) = {each.param_groups[0]["seconds_per_number"] for each in made}
    assert rate * config.gpt.num_parameters == pytest.approx(durations(config).optimizer_s)


def test_passes_of_one_step_share_its_duration(clock: Clock) -> None:
    config = emulated(emulated_forward_s=1.0, emulated_backward_s=2.0, gradient_accumulation=4)
    model = asleep(config)
    began = clock.now
    for _ in range(4):
        model().backward()
    assert clock.now - began == pytest.approx(3)


def test_a_workers_speed_and_jitter_scale_its_durations(clock: Clock) -> None:
    config = emulated(
        strategy="independent", num_workers=3, emulated_forward_s=1.0, emulated_backward_s=2.0,
        emulated_optimizer_s=0.5, speed_factor="2=0.5", compute_cv=0.2,
    )  # fmt: skip
    model = EmulatedGPT(config, durations(config), worker=2)
    optimizer = EmulatedOptimizer(model.parameters(), 0.5 / config.gpt.num_parameters, model.schedule)
    for step in range(3):
        began = clock.now
        model().backward()
        optimizer.step()
        assert clock.now - began == pytest.approx(3.5 * slowdown(config, 2, step))


def test_oversleeping_does_not_accumulate_and_is_measured(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    config = emulated(emulated_forward_s=1.0, emulated_backward_s=2.0, warmup_steps=1)
    monkeypatch.setattr(clock, "sleep", lambda seconds: setattr(clock, "now", clock.now + seconds + 0.0005))
    model = asleep(config)
    for _ in range(2):
        began = clock.now
        model().backward()
        assert clock.now - began == pytest.approx(3.0005, abs=0.0006)
    layers_that_take_time = sum(flops > 0 for flops in forward_flops(config.gpt).values())
    assert model.schedule.overshoots_s == pytest.approx([0.0005] * 2 * layers_that_take_time)  # of the second step


def test_weights_and_gradients_are_views_of_one_vector_of_zeros() -> None:
    config = emulated(gradient_accumulation=2, emulated_forward_s=0.0, emulated_backward_s=0.0)
    model = asleep(config)
    for _ in range(2):
        model().backward()
    tensors = list(itertools.chain.from_iterable((p, p.grad) for p in model.parameters()))
    places = {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor is not None}
    assert len(places) == 1  # not even autograd has copied a gradient
    largest = max(p.numel() for p in model.parameters())
    assert all(t is not None and t.untyped_storage().nbytes() == 4 * largest and not t.any() for t in tensors)


def test_layers_are_at_the_same_place_of_the_module_tree() -> None:
    config = emulated()
    stand_in, awake = asleep(config), build_model(config, CPU)
    shapes = [[(name, p.shape) for name, p in model.named_parameters()] for model in (stand_in, awake)]
    assert shapes[0] == shapes[1]
    assert [name for name, _ in stand_in.named_modules()] == [name for name, _ in awake.named_modules()]
    layers = [
        name for name, module in awake.named_modules() if next(module.parameters(recurse=False), None) is not None
    ]
    assert layers == list(forward_flops(config.gpt)) == list(by_flops(config.gpt, 1, 1, 0).backward_s)


def test_emulated_steps_have_times_and_no_loss() -> None:
    for config in (emulated(), small(compute="none")):
        strategy = create("local", SingleGroup(), config)
        for step in steps_of(config, strategy, []):
            assert step.loss is None
            assert step.step_s > 0


@pytest.mark.parametrize("index", [0, 1])
def test_a_stage_sleeps_its_layers_however_long_it_waits_for_others(clock: Clock, index: int) -> None:
    config = emulated(strategy="pipeline", num_workers=2, num_micro_batches=2)
    times, stage = durations(config), asleep(config).stage(index, 2)
    rows = torch.zeros(2, 0, dtype=torch.int64)
    began, outputs = clock.now, []
    for _ in range(2):
        clock.now += 1  # until the micro-batch arrives
        received = torch.zeros(stage.like_input(rows).shape, requires_grad=True) if index else rows
        outputs.append(stage(received))
    for output in outputs:
        clock.now += 1  # until its gradient arrives
        output.backward(torch.zeros_like(output))
    own = [name for name in times.forward_s if any(name == each.name for each in layers_of(stage))]
    slept_s = sum(times.forward_s[name] + times.backward_s[name] for name in own)
    assert clock.now - began == pytest.approx(4 + slept_s)


def layers_of(module: nn.Module) -> list[Any]:
    return [each for each in module.modules() if hasattr(each, "name")]
