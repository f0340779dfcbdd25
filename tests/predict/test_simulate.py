"""Laws of the event simulation: its deterministic limit is the closed form, and bounds order consistency models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.config import make_config
from bench.predict import Cell, ClusterCalibration, step_time
from bench.predict.simulate import Timing, run, simulate

SERVED: dict[str, Any] = {
    "strategy": "parameter_server", "model": "gpt-micro", "compute": "emulated", "emulated_forward_s": 0.1,
    "emulated_backward_s": 0.2, "emulated_optimizer_s": 0.001, "link": "200mbit",
}  # fmt: skip


def cell(**knobs: Any) -> Cell:
    return Cell(make_config({**SERVED, **knobs}, "test"))


@given(
    st.integers(1, 24), st.integers(1, 4), st.sampled_from(["asp", "ssp"]), st.sampled_from(["dedicated", "colocated"])
)
def test_without_jitter_it_is_the_closed_form(workers: int, servers: int, consistency: str, placement: str) -> None:
    knobs: dict[str, Any] = {"placement": placement, "consistency": consistency, "num_workers": workers}
    knobs |= {"num_servers": servers} if placement == "dedicated" else {}
    knobs |= {"staleness": 3} if consistency == "ssp" else {}
    found, closed = (f(cell(**knobs), ClusterCalibration()) for f in (simulate, step_time))
    assert found.step_s == pytest.approx(closed.step_s, rel=0.02)


def test_no_staleness_is_bulk_synchronous() -> None:
    knobs = {"num_workers": 5, "num_servers": 1}
    ssp = simulate(cell(**knobs, consistency="ssp", staleness=0), ClusterCalibration())
    assert ssp.step_s == pytest.approx(step_time(cell(**knobs), ClusterCalibration()).step_s)
    assert ssp.tokens_per_s == pytest.approx(step_time(cell(**knobs), ClusterCalibration()).tokens_per_s)


def ends(bound: float, jitter: np.ndarray, service: float = 0.0) -> np.ndarray:
    workers = jitter.shape[0]
    return run(Timing([1.0] * workers, [service] * workers, service), jitter, bound)[0]


@given(st.integers(2, 8), st.integers(0, 5), st.integers(0, 1000))
def test_a_looser_bound_never_ends_later_and_holds(workers: int, bound: int, seed: int) -> None:
    jitter = np.exp(0.3 * np.random.default_rng(seed).standard_normal((workers, 20)))
    strict, loose, free = (ends(s, jitter) for s in (bound, bound + 1, np.inf))
    assert (loose <= strict + 1e-9).all()
    assert (free <= loose + 1e-9).all()
    assert np.allclose(free, jitter.cumsum(axis=1))  # nobody waits
    start = strict - jitter
    for k in range(bound + 1, 20):
        assert (start[:, k] >= strict[:, k - 1 - bound].max() - 1e-9).all()


def test_bulk_synchronous_steps_end_with_the_slowest_worker() -> None:
    jitter = np.exp(0.3 * np.random.default_rng(0).standard_normal((6, 15)))
    assert ends(0, jitter)[:, -1].max() == pytest.approx(jitter.max(axis=0).sum())


def test_a_lasting_straggler_sets_the_rate_of_every_finite_bound() -> None:
    knobs = {"num_workers": 4, "num_servers": 4, "speed_factor": "3=0.5"}
    bounded = simulate(cell(**knobs, consistency="ssp", staleness=4), ClusterCalibration(), steps=200)
    free = simulate(cell(**knobs, consistency="asp"), ClusterCalibration(), steps=200)
    assert bounded.rate_tokens_per_s == pytest.approx(4 / 0.6 * 8 * 128, rel=0.1)
    assert free.rate_tokens_per_s > 1.5 * bounded.rate_tokens_per_s
    assert bounded.wait_s > 0.1 > free.wait_s == 0


def test_slow_links_slow_their_workers_alone() -> None:
    knobs = {"num_workers": 3, "num_servers": 1, "consistency": "asp"}
    even = simulate(cell(**knobs, link="server=2gbit,*=200mbit"), ClusterCalibration())
    uneven = simulate(cell(**knobs, link="n0=20mbit,server=2gbit,*=200mbit"), ClusterCalibration())
    assert uneven.step_s > 2 * even.step_s
    assert uneven.rate_tokens_per_s > even.rate_tokens_per_s * 0.6


def test_equal_workers_are_stale_by_all_others() -> None:
    found = simulate(cell(num_workers=8, num_servers=1, consistency="asp", compute_cv=0.1), ClusterCalibration())
    assert found.mean_staleness == pytest.approx(7, rel=0.15)


@given(st.integers(2, 16), st.integers(1, 3))
def test_equal_workers_push_together_whatever_they_wait_for(workers: int, servers: int) -> None:
    knobs = {"num_workers": workers, "num_servers": servers}
    bsp, asp = (step_time(cell(**knobs, consistency=name), ClusterCalibration()) for name in ("bsp", "asp"))
    assert asp.step_s == bsp.step_s


def test_exchanges_under_way_share_the_server_evenly() -> None:
    even, apart = (run(Timing(busy, [0.5, 0.5], 0.5), np.ones((2, 1)), np.inf)[0] for busy in ([1.0, 1.0], [1.0, 1.2]))
    assert even.tolist() == [[2.0], [2.0]]  # each takes twice as long
    assert apart.ravel() == pytest.approx([1.8, 2.0])  # alone for 0.2 s, shared until the first ends, then alone
