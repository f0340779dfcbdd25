"""Laws of a run's numbers: the slowest worker sets the step, the rate is all work over common time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import ledger
from bench.config import RunConfig
from bench.ledger import Ledger, RoleVolumes
from bench.rank import numbers
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


def test_more_threads_than_cores_are_labelled() -> None:
    ring = CONFIG.model_copy(update={"strategy": "ring_allreduce"})
    apart = [report(0, [1, 1, 1]), report(1, [1, 1, 1])]
    not_ring = Observed(allreduce_algorithm="not_ring")
    together = [replace(report(0, [1, 1, 1]), observed=not_ring) for _ in range(2)]
    assert numbers.labels(ring, apart) == ["loopback"]
    assert numbers.labels(ring, together) == ["oversubscribed", "loopback", "not_ring"]


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
