"""Laws of fewer bytes: nothing is lost for good, every byte is counted, and the model still learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.config import MIN_CONVERGENCE, RunConfig
from bench.ledger import predict
from bench.rank.convergence import convergence as fallen
from bench.rank.data import load
from bench.rank.train import build_model, held_out_loss
from bench.rank.weights import checksum
from strategies.base import Strategy
from strategies.options import Options
from strategies.parameter_server.compression import NUMBERS_PER_SCALE, make_codec
from strategies.parameter_server.wire import make_wire
from tests.support.virtual import final_weights, run_world
from tests.support.worlds import CPU, WORLDS, counted_per_step, served

CODECS: dict[str, dict[str, Any]] = {
    "topk": {"compression": "topk"},
    "topk bf16": {"compression": "topk", "topk_ratio": 0.2, "wire_dtype": "bf16"},
    "int8": {"compression": "int8"},
    "onebit": {"compression": "onebit"},
}
# How much of a vector is left out, at most: the squared length of the rest over that of the vector.
LEAVES_OUT = {"topk": 1 - 0.01, "topk bf16": 1 - 0.19, "int8": NUMBERS_PER_SCALE / (2 * 127) ** 2, "onebit": 1.0}
LOSSY: dict[str, dict[str, Any]] = {
    "topk": {"compression": "topk", "topk_ratio": 0.1},
    "topk sum bf16": {"compression": "topk", "topk_ratio": 0.3, "wire_dtype": "bf16", "server_role": "sum"},
    "int8": {"compression": "int8"},
    "int8, clipping": {"compression": "int8", "clip_norm": 0.5, "gradient_accumulation": 2},
    "onebit": {"compression": "onebit"},
    "onebit sum": {"compression": "onebit", "server_role": "sum"},
    "4 steps alone": {"sync_every": 4},
    "4 steps alone, fp16": {"sync_every": 4, "precision": "fp16", "wire_dtype": "fp16"},
    "4 steps alone, int8": {"sync_every": 4, "compression": "int8"},
}


def numbers(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator) * torch.logspace(-6, 1, size)


@pytest.mark.parametrize("knobs", CODECS.values(), ids=CODECS)
@given(size=st.integers(1, 3 * NUMBERS_PER_SCALE), seed=st.integers(0, 9))
def test_a_message_is_as_long_as_announced_and_brings_the_receiver_nearer(
    knobs: dict[str, Any], size: int, seed: int
) -> None:
    codec = make_codec(Options(**knobs))
    assert codec is not None
    values, heard = numbers(size, seed), torch.empty(size)
    message = torch.empty(codec.nbytes(size), dtype=torch.uint8)
    codec.encode(values, message)
    codec.decode(message, heard)
    left_out = float((values - heard).double().square().sum() / values.double().square().sum())
    assert left_out <= next(bound for name, bound in LEAVES_OUT.items() if CODECS[name] == knobs)


@pytest.mark.parametrize("knobs", CODECS.values(), ids=CODECS)
def test_zeros_stay_zeros(knobs: dict[str, Any]) -> None:
    codec = make_codec(Options(**knobs))
    assert codec is not None
    message, heard = torch.empty(codec.nbytes(1500), dtype=torch.uint8), torch.ones(1500)
    codec.encode(torch.zeros(1500), message)
    codec.decode(message, heard)
    assert not heard.any()


@pytest.mark.parametrize("knobs", CODECS.values(), ids=CODECS)
def test_what_one_message_leaves_out_the_next_ones_say(knobs: dict[str, Any]) -> None:
    """Said and still owed are together what was put, step after step; and what is owed stays bounded."""
    codec, sizes = make_codec(Options(**knobs)), (1000, 1500)
    assert codec is not None
    (sent, messages), (heard, arrived) = (
        (torch.zeros(2500), [torch.empty(codec.nbytes(size), dtype=torch.uint8) for size in sizes]) for _ in range(2)
    )
    sender = make_wire(Options(**knobs), messages, sizes, sent)
    receiver = make_wire(Options(**knobs), arrived, sizes, heard, adds=True)
    put, owed = torch.zeros(2500), []
    for step in range(300):
        gradient = numbers(2500, step)
        put += gradient
        sender.put(sent, gradient)
        for index in range(len(sizes)):
            said = sender.pack(index).clone()
            receiver.message(index)[:] = sender.message(index)
            before = receiver.parts[index].clone()
            receiver.unpack(index)
            assert torch.equal(receiver.parts[index], before + said)
        assert torch.allclose(heard + sent, put, rtol=0, atol=1e-4 * float(put.abs().max()))
        owed.append(float(sent.norm()))
    assert max(owed[200:]) < 1.5 * max(owed[:200])


@pytest.mark.parametrize("world", ["2+1", "5 colocated", "3+1 mixed"])
@pytest.mark.parametrize("knobs", LOSSY.values(), ids=LOSSY)
def test_every_world_learns_ends_with_one_model_and_counts_every_byte(world: str, knobs: dict[str, Any]) -> None:
    config = served(**{**WORLDS[world], **knobs, "chunk_bytes": 8192})
    strategies = run_world(config)
    assert len({checksum(each) for each in final_weights(strategies)}) == 1
    found = predict(config)
    predicted = list(vars(found.worker).values())
    assert counted_per_step(config, strategies) == pytest.approx(predicted, rel=1e-12, abs=found.tolerance_bytes)
    assert found.tolerance_bytes < max(0.15 * predicted[0], 1)


@pytest.mark.parametrize("name", ["topk", "int8", "onebit", "onebit sum", "4 steps alone", "4 steps alone, int8"])
def test_it_converges_as_one_process_does(name: str) -> None:
    config = learning(**LOSSY[name])
    strategies = run_world(config)
    assert convergence(config, strategies) > MIN_CONVERGENCE


def test_the_convergence_check_stops_a_run_that_does_not_learn() -> None:
    config = learning(sync_every=4, outer_learning_rate=0.1, outer_momentum=0)
    assert convergence(config, run_world(config)) < MIN_CONVERGENCE


def learning(**knobs: Any) -> RunConfig:
    fast = {"steps": 80, "batch_size": 8, "learning_rate": 3e-3, "chunk_bytes": 2048}
    return served(num_workers=2, num_servers=1, data="stdlib", **fast, **knobs)


def convergence(config: RunConfig, strategies: list[Strategy]) -> float:
    corpus, model = load(config), build_model(config, CPU)
    model.load_state_dict(final_weights(strategies)[0])
    held_out = held_out_loss(config, model, corpus, CPU)
    assert held_out is not None
    return fallen(config, held_out, corpus, CPU)


def test_one_worker_that_averages_with_itself_trains_as_if_alone() -> None:
    alone = served(num_workers=1, num_servers=1)
    averaging = served(num_workers=1, num_servers=1, sync_every=2, outer_learning_rate=1, outer_momentum=0)
    ends = [final_weights(run_world(config))[0] for config in (alone, averaging)]
    for name, weights in ends[0].items():
        assert torch.allclose(weights, ends[1][name], rtol=0, atol=1e-6)


def test_everything_kept_is_the_dense_run() -> None:
    everything = {"compression": "topk", "topk_ratio": 1.0}
    ends = [final_weights(run_world(served(num_workers=3, num_servers=2, **knobs)))[0] for knobs in ({}, everything)]
    for name, weights in ends[0].items():
        assert torch.allclose(weights, ends[1][name], rtol=0, atol=1e-5)
