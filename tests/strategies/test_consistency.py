"""Laws of BSP, SSP and ASP: nobody is ever further ahead than the bound, and nobody waits for nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.parameter_server.consistency import Clocks, Staleness
from tests.support.worlds import assert_equivalent, served_alone, served_in_one_process

STEPS = 12


def run_workers(num_workers: int, staleness: float, order: st.DataObject) -> tuple[Staleness, list[int]]:
    """Let workers push in any order that the clocks allow; return what the clocks saw, and all leads."""
    found, done, leads = Staleness(), [0] * num_workers, []
    clocks = Clocks(num_workers, staleness, found)
    waiting: set[int] = set()
    while min(done) < STEPS:
        free = [w for w in range(num_workers) if w not in waiting and done[w] < STEPS]
        assert free, "everybody waits"
        worker = order.draw(st.sampled_from(free))
        done[worker] += 1
        waiting.add(worker)
        replied = clocks.push(worker)
        clocks.updated(worker)
        for each in replied:
            clocks.replied(each)
            leads.append(done[each] - min(done))
        waiting -= set(replied)
    return found, leads


@given(st.integers(1, 6), st.sampled_from([0, 1, 2, 5, math.inf]), st.data())
def test_no_worker_is_replied_beyond_the_bound_and_none_is_stuck(
    num_workers: int, staleness: float, order: st.DataObject
) -> None:
    found, leads = run_workers(num_workers, staleness, order)
    assert found.largest_lead == max(leads) <= staleness
    assert len(leads) == num_workers * STEPS == found.missed_updates.total()
    if num_workers == 1:
        assert set(found.missed_updates) == {0}
    if staleness < math.inf:  # what others can do between two replies to a worker
        assert max(found.missed_updates) <= (2 * staleness + 2) * (num_workers - 1)


@given(st.integers(1, 6), st.data())
def test_bsp_replies_to_all_together(num_workers: int, order: st.DataObject) -> None:
    clocks = Clocks(num_workers, 0, Staleness())
    for _ in range(3):
        workers = order.draw(st.permutations(range(num_workers)))
        replies = [clocks.push(worker) for worker in workers]
        assert replies == [[]] * (num_workers - 1) + [list(range(num_workers))]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_asp_with_one_worker_is_local(optimizer: str) -> None:
    config = served_alone(consistency="asp", optimizer=optimizer)
    watched, strategy = served_in_one_process(config)
    assert_equivalent(config, watched)
    assert set(strategy.observe().missed_updates) == {0}


@pytest.mark.parametrize(("staleness", "lead"), [(0, 1), (2, 3)])
def test_a_worker_that_waits_for_one_that_has_closed_is_named(staleness: float, lead: int) -> None:
    clocks = Clocks(2, staleness, Staleness())
    for _ in range(lead):
        assert clocks.missing({1}) is None
        clocks.push(0)
    assert clocks.missing({1}) == (0, 1)
    assert clocks.missing(set()) is None
    free = Clocks(2, math.inf, Staleness())
    assert [free.push(0) for _ in range(9)] == [[0]] * 9
    assert free.missing({1}) is None
