"""Laws of the parameter server at world sizes 2 to 5, wherever it is placed: no launcher, all ranks in one process."""

from __future__ import annotations

import time
from typing import Any

import pytest

from bench.config import RunConfig
from bench.ledger import predict
from bench.rank.weights import checksum
from strategies.parameter_server import progress
from strategies.parameter_server.outbox import Outbox, sending_order
from strategies.parameter_server.plan import Chunk
from tests.support.virtual import final_weights, run_world, watched
from tests.support.worlds import WORLDS, assert_equivalent, counted_per_step, served

KNOBS: dict[str, dict[str, object]] = {
    "plain": {},
    "momentum, priority": {"optimizer": "sgd", "schedule": "priority", "window_bytes": 3000},
    "clipping, accumulation, polling": {
        "poll_s": 60.0,
        "clip_norm": 0.3,
        "gradient_accumulation": 2,
        "optimizer": "sgd",
    },
    "fp16": {"precision": "fp16", "wire_dtype": "bf16"},
    "ssp of no staleness": {"consistency": "ssp"},
    "sum": {"server_role": "sum", "optimizer": "sgd", "clip_norm": 0.3, "gradient_accumulation": 2},
    "sum, fp16": {"server_role": "sum", "precision": "fp16", "wire_dtype": "fp16"},
    "whole tensors, clipping": {"sharding": "tensors", "clip_norm": 0.3, "window_bytes": 3000, "schedule": "priority"},
    "whole tensors, bf16": {"sharding": "tensors", "wire_dtype": "bf16", "optimizer": "sgd", "window_bytes": None},
}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize(
    ("knobs", "lonely"),
    [(knobs, 1) for knobs in KNOBS.values()]
    + [(KNOBS[name], lonely) for name in ("plain", "sum") for lonely in (0, 5)],
    ids=str,
)
def test_every_world_trains_the_reference_model_and_counts_every_byte(
    world: dict[str, object], knobs: dict[str, object], lonely: int
) -> None:
    """Whatever travels and whatever does not: the first ranks are alone on their nodes, the others share memory."""
    assert_trains_the_reference_model_and_counts_every_byte(served(**world, **knobs), lonely)


@pytest.mark.parametrize("knobs", [KNOBS["plain"], KNOBS["momentum, priority"], {"consistency": "ssp"}], ids=str)
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_so_does_every_world_whose_messages_are_large(
    world: dict[str, object], knobs: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Receives are posted ahead for some of them; in whatever order they come."""
    monkeypatch.setattr(progress, "LARGE_BYTES", 1)
    monkeypatch.setattr(progress, "MAX_AHEAD", 3)
    assert_trains_the_reference_model_and_counts_every_byte(served(**world, **knobs), lonely=5)


def assert_trains_the_reference_model_and_counts_every_byte(config: RunConfig, lonely: int) -> None:
    strategies = run_world(config, lonely=lonely)
    weights = final_weights(strategies)
    assert_equivalent(config, *watched(strategies))
    assert len(weights) == config.num_workers
    assert len({checksum(each) for each in weights}) == 1
    found = predict(config)
    predicted = list(vars(found.worker).values())
    assert counted_per_step(config, strategies) == pytest.approx(predicted, rel=1e-12, abs=found.tolerance_bytes)


@pytest.mark.parametrize("world", ["3+2", "5 colocated", "3+1 mixed"])
@pytest.mark.parametrize(
    "knobs",
    [{"consistency": "asp"}, {"consistency": "ssp", "staleness": 2}, {"compression": "int8"}, {"sync_every": 2}],
    ids=str,
)
def test_whole_tensors_are_counted_where_weights_are_not_promised(world: str, knobs: dict[str, object]) -> None:
    config = served(**WORLDS[world], **knobs, sharding="tensors")
    counted, found = counted_per_step(config, run_world(config)), predict(config)
    assert counted == pytest.approx(list(vars(found.worker).values()), rel=1e-12, abs=found.tolerance_bytes)


@pytest.mark.parametrize("placement", [{"num_servers": 2}, {"placement": "colocated"}], ids=str)
def test_what_ranks_of_a_node_say_to_each_other_is_not_sent(placement: dict[str, object]) -> None:
    config = served(num_workers=4, consistency="asp", **placement)
    both_ways, rest = 2 * config.gpt.num_parameters * 4, []
    for lonely in (config.world_size, 1, 0):
        ranks: list[Any] = run_world(config, lonely=lonely)
        rest.append(ranks[0]._comm.node.message_bytes / both_ways)
        assert [rank.observe().shares_memory for rank in ranks] == [number >= lonely for number in range(len(ranks))]
    colocated = config.num_servers == 0
    # Colocated, a worker's own quarter never travels; the lonely one's shard is a quarter of what three others want.
    assert rest == pytest.approx([3, 1.5, 0] if colocated else [4, 1, 0])


def test_equal_runs_end_bitwise_equal_whoever_is_late() -> None:
    config = served(num_workers=3, num_servers=2, steps=6)

    def late(worker: int, step: int) -> None:
        time.sleep(0.01 * ((worker + step) % 3))

    first, second = (final_weights(run_world(config, delay)) for delay in (late, lambda worker, step: None))
    assert checksum(first[0]) == checksum(second[0])


@pytest.mark.parametrize("staleness", [1, 3])
def test_ssp_never_exceeds_its_bound_whoever_is_late(staleness: int) -> None:
    config = served(num_workers=3, num_servers=2, steps=12, consistency="ssp", staleness=staleness)
    strategies = run_world(config, lambda worker, step: time.sleep(0.2 * (worker == 1)))
    leads = [strategy.observe().largest_lead for strategy in strategies[config.num_workers :]]
    assert leads == [staleness] * 2  # reached, and never passed


def test_asynchronous_training_learns_no_less_than_synchronous() -> None:
    ended: dict[str, float] = {}
    for consistency, bound in (("bsp", 0), ("ssp", 2), ("asp", 0)):
        config = served(
            num_workers=3, placement="colocated", consistency=consistency, staleness=bound,
            data="stdlib", steps=40, batch_size=8, learning_rate=3e-3,
        )  # fmt: skip
        workers = run_world(config)
        began, ended[consistency] = (sum(worker.losses[step] for worker in watched(workers)) / 3 for step in (0, -1))
        assert ended[consistency] < began - 1
    assert max(ended["ssp"], ended["asp"]) < ended["bsp"] + 0.2


def test_a_worker_begins_each_stripe_with_a_server_of_its_own() -> None:
    chunks = [Chunk(index, index // 4, index % 4, index, index + 1) for index in range(12)]
    for schedule, first_stripe in (("fifo", 0), ("priority", 2)):
        begun_with = set()
        for worker in range(4):
            places = sending_order(chunks, schedule, worker, 4)
            assert sorted(places) == list(range(12))
            first = chunks[places.index(0)]
            assert first.stripe == first_stripe
            begun_with.add(first.server)
        assert begun_with == {0, 1, 2, 3}


def test_a_window_lets_what_is_needed_first_overtake() -> None:
    chunks = [Chunk(index, index, 0, 10 * index, 10 * index + 10) for index in range(5)]
    left: list[int] = []
    outbox = Outbox(chunks, sending_order(chunks, "priority", 0, 1), 20, lambda chunk: left.append(chunk.index))
    outbox.add([0, 1, 2])
    assert left == [2, 1]
    outbox.add([4])
    outbox.arrived(chunks[2])
    outbox.arrived(chunks[1])
    assert left == [2, 1, 4, 0]
