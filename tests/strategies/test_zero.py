"""Laws of ZeRO on mpi4py: at every world size it trains one process's model and moves what a colocated server moves."""

from __future__ import annotations

from typing import Any

import pytest

from bench.ledger import predict
from bench.rank.weights import checksum
from tests.support.virtual import final_weights, run_world, watched
from tests.support.worlds import assert_equivalent, counted_per_step, served, small

SGD = {"optimizer": "sgd", "learning_rate": 0.1}
KNOBS: dict[str, dict[str, object]] = {
    "plain": {},
    "momentum": SGD,
    "clipping, accumulation": {**SGD, "clip_norm": 0.3, "gradient_accumulation": 2},
    "bf16 wire": {"wire_dtype": "bf16", "precision": "bf16"},
    "fp16": {"precision": "fp16", "wire_dtype": "fp16"},
    "small messages": {"segment_bytes": 500},
}


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
def test_every_world_trains_the_reference_model_and_counts_every_byte(
    num_workers: int, knobs: dict[str, object]
) -> None:
    config = small(strategy="zero", num_workers=num_workers, **{"segment_bytes": 4096, **knobs})
    strategies = run_world(config)
    weights = final_weights(strategies)
    assert_equivalent(config, *watched(strategies))
    assert len({checksum(each) for each in weights}) == 1
    assert counted_per_step(config, strategies) == pytest.approx(list(vars(predict(config).worker).values()), rel=1e-12)


@pytest.mark.parametrize("num_workers", [2, 3, 4])
def test_weights_are_those_of_one_process_to_a_hundred_thousandth(num_workers: int) -> None:
    config = small(strategy="zero", num_workers=num_workers, **SGD, weight_decay=0.1)
    found = final_weights(run_world(config))
    expected = final_weights(run_world(small(strategy="ddp", num_workers=num_workers, **SGD, weight_decay=0.1)))
    for name, weight in found[0].items():
        assert float((weight - expected[0][name]).abs().max()) <= 1e-5


@pytest.mark.parametrize("num_workers", [2, 3, 8])
@pytest.mark.parametrize("wire_dtype", ["fp32", "bf16"])
def test_it_moves_the_bytes_of_a_ring_and_of_a_colocated_server(num_workers: int, wire_dtype: str) -> None:
    alike: Any = {"num_workers": num_workers, "wire_dtype": wire_dtype}
    zero, ring = (predict(small(strategy=name, **alike)).worker for name in ("zero", "mpi_ring"))
    server = predict(served(placement="colocated", **alike)).worker
    assert zero == ring
    assert (zero.bytes_sent, zero.bytes_received) == pytest.approx(
        (server.bytes_sent, server.bytes_received), rel=1e-12
    )


def test_shards_are_equal() -> None:
    config = small(strategy="zero", num_workers=3)
    assert all(1 <= (rank.observe().shard_imbalance or 0) <= 1.01 for rank in run_world(config))
