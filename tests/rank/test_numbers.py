"""Laws of a run's numbers: the slowest worker sets the step, the rate is all work over common time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import ledger
from bench.config import RunConfig
from bench.ledger import Ledger, RoleVolumes
from bench.rank import numbers
from bench.rank.judge import judge_loss
from bench.rank.numbers import RankReport
from bench.records import StepRecord
from strategies.base import Observed
from strategies.volume import Volume

CONFIG = RunConfig(strategy="independent", num_workers=2, steps=3, warmup_steps=1)
step_times = st.lists(st.floats(0.001, 10), min_size=3, max_size=3)


def report(worker: int, times: list[float], warmup_s: float = 99.0, loss: float = 1.0) -> RankReport:
    steps = [
        StepRecord(
            worker=worker, step=i, warmup=i == 0, loss=loss, step_s=t, data_s=0, forward_s=t / 2, backward_s=t / 4,
            exposed_communication_s=t / 8, optimizer_s=t / 8, communication_s=t / 4,
        )
        for i, t in enumerate([warmup_s, *times])
    ]  # fmt: skip
    return RankReport("host", frozenset({worker}), False, steps)


@given(step_times, step_times)
def test_rate_is_all_work_over_the_slowest_workers_time(one: list[float], other: list[float]) -> None:
    found = numbers.timing(CONFIG, [report(0, one), report(1, other)])
    assert found["tokens_per_s"] == pytest.approx(CONFIG.tokens_per_step * 3 / max(sum(one), sum(other)))
    slowest = sorted(max(pair) for pair in zip(one, other, strict=True))
    assert found["step_s"] == pytest.approx(slowest[1])
    assert slowest[1] <= found["step_s_p95"] <= slowest[2] * (1 + 1e-12)


@given(step_times, st.floats(0.001, 1e6))
def test_warm_up_counts_for_nothing(times: list[float], warmup_s: float) -> None:
    reports = [[report(0, times, w), report(1, times, w)] for w in (warmup_s, 1.0)]
    assert numbers.timing(CONFIG, reports[0]) == numbers.timing(CONFIG, reports[1])


@given(step_times)
def test_overlap_is_the_hidden_share_of_communication(times: list[float]) -> None:
    assert numbers.timing(CONFIG, [report(0, times), report(1, times)])["overlap_fraction"] == pytest.approx(0.5)


def test_final_loss_is_that_of_the_global_batch() -> None:
    reports = [report(0, [1, 1, 1], loss=2.0), report(1, [1, 1, 1], loss=4.0)]
    assert numbers.losses(reports)["final_loss"] == 3


def judged_loss(losses: list[list[float | None]], held_out: float | None = 2.0, **knobs: object) -> str:
    """Of workers with these losses, step by step."""
    reports = [
        replace(each, steps=[replace(step, loss=loss) for step, loss in zip(each.steps, own, strict=True)])
        for each, own in ((report(worker, [1, 1, 1]), own) for worker, own in enumerate(losses))
    ]
    return judge_loss(CONFIG.model_copy(update=knobs), reports, held_out).reason


def test_a_loss_that_is_not_finite_is_named_with_its_step() -> None:
    good = [5.0, 4.0, 3.0, 2.0]
    assert judged_loss([good, good]) == judged_loss([[None] * 4] * 2, None) == ""
    assert judged_loss([good, [5.0, 4.0, math.inf, math.nan]]) == "loss is not finite from step 2 on"
    assert judged_loss([[math.nan] * 4, good]) == "loss is not finite from step 0 on"
    assert judged_loss([good, [5.0, math.inf, 3.0, 2.0]]) == "loss is not finite at step 1"
    assert judged_loss([good, good], math.inf) == "held-out loss is not finite after the last step"


def test_loss_scaling_may_skip_a_step_and_a_sweep_may_allow_what_it_wants_to_see() -> None:
    skipped, lost = [math.inf, 4.0, 3.0, 2.0], [5.0, math.inf, 3.0, math.nan]
    assert judged_loss([skipped], precision="fp16") == ""
    assert judged_loss([lost], precision="fp16") == "loss is not finite from step 3 on"
    assert judged_loss([lost], math.nan, allow_nonfinite_loss=True) == ""


def test_a_mean_that_is_not_finite_is_blank() -> None:
    assert numbers.losses([report(0, [1, 1, 1], loss=math.nan)]) == {"first_loss": None, "final_loss": None}


def test_more_threads_than_cores_are_labelled() -> None:
    ring = CONFIG.model_copy(update={"strategy": "ring_allreduce"})
    apart = [report(0, [1, 1, 1]), report(1, [1, 1, 1])]
    not_ring = Observed(allreduce_of_bytes={64: "ring", 4096: "not_ring"})
    together = [replace(report(0, [1, 1, 1]), observed=not_ring) for _ in range(2)]
    assert numbers.labels(ring, apart) == ["loopback"]
    assert numbers.labels(ring, together) == ["oversubscribed", "loopback", "not_ring"]


def test_a_precision_that_one_processor_computes_in_software_is_labelled() -> None:
    alone = CONFIG.model_copy(update={"num_workers": 1, "num_servers": 0, "strategy": "local"})
    assert numbers.labels(alone, [replace(report(0, [1, 1, 1]), in_software=True)]) == ["slow_precision"]


@given(st.integers(1, 600), st.integers(1, 64), st.booleans())
def test_what_workers_send_is_what_servers_receive(workers: int, servers: int, clipped: bool) -> None:
    config = RunConfig(
        strategy="parameter_server", num_workers=workers, num_servers=servers, clip_norm=1.0 if clipped else None
    )
    found = ledger.predict(config)
    for unit in ("bytes", "messages"):
        sent = getattr(found.worker, f"{unit}_sent") * workers + getattr(found.server, f"{unit}_sent") * servers
        received = (
            getattr(found.worker, f"{unit}_received") * workers + getattr(found.server, f"{unit}_received") * servers
        )
        assert sent == pytest.approx(received)


@given(st.integers(2, 600))
def test_a_ring_sends_at_most_twice_the_gradient_and_more_with_every_rank(workers: int) -> None:
    here, there = (
        ledger.predict(RunConfig(strategy="ring_allreduce", num_workers=n)).worker.bytes_sent
        for n in (workers, workers + 1)
    )
    assert here < there < 2 * CONFIG.wire_bytes


def test_a_byte_too_many_is_a_disagreement() -> None:
    config = RunConfig(strategy="parameter_server", num_servers=1)
    predicted = ledger.predict(config).worker
    for extra, verdict in ((0, True), (1, False)):
        counted = Volume(predicted.bytes_sent, predicted.bytes_received, None, None)
        counted.add(sent=extra)
        assert ledger.make_ledger(config, RoleVolumes(counted), RoleVolumes()).agrees is verdict


def test_nothing_counted_is_no_agreement() -> None:
    config = RunConfig(strategy="parameter_server", num_servers=1)
    assert ledger.make_ledger(config, RoleVolumes(), RoleVolumes()).agrees is None


def test_a_ledger_survives_its_columns() -> None:
    volumes = [Volume(1.0 + i, 2.0 + i, 3.0 + i, 4.0 + i) for i in range(4)]
    found = Ledger(
        RoleVolumes(volumes[0], volumes[1], Volume(5.0, 6.0, None, None)), RoleVolumes(volumes[2], volumes[3]), False
    )
    row = found.row()
    assert row["bytes_received_per_worker_per_step_wire"] == 6
    assert row["messages_sent_per_server_per_step_predicted"] == 6
    assert Ledger.of_row(row) == found
    assert Ledger.of_row({}) == Ledger()
    with pytest.raises(ValueError, match="bytes_sent_per_step is no column"):
        Ledger.of_row({"bytes_sent_per_step": 1})


def test_peak_memory_can_be_forgotten() -> None:
    bytearray(200 << 20)
    before = numbers.peak_memory_bytes()
    numbers.reset_peak_memory()
    assert numbers.peak_memory_bytes() < before - (100 << 20)


def test_a_servers_waiting_is_per_step_and_the_mean_over_servers() -> None:
    workers = [report(worker, [0.1, 0.1]) for worker in range(2)]
    steps = len(workers[0].steps)
    servers = [
        RankReport("host", frozenset({2}), True, observed=Observed(server_idle_s=seconds)) for seconds in (1.0, 2.0)
    ]
    assert numbers.serving([*workers, *servers])["server_wait_s"] == 1.5 / steps
    assert numbers.serving(workers)["server_wait_s"] is None
