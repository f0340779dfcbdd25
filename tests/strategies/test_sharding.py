"""Laws of placing whole tensors: near the best placement, equal on every rank, and known in closed form."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.config import BadInput, RunConfig, make_config
from bench.rank.model import GPT
from bench.shape import PRESETS, GPTShape
from strategies.closed_forms import Job, push_pull, shards
from strategies.parameter_server.plan import Plan, Roles
from strategies.sharding import place_tensors
from tests.support.worlds import WORLDS, served

sizes = st.lists(st.integers(1, 100), min_size=1, max_size=6)


def most_held(sizes: list[int], server_of: Any, num_servers: int) -> int:
    held = [0] * num_servers
    for size, server in zip(sizes, server_of, strict=True):
        held[server] += size
    return max(held)


@given(sizes, st.integers(1, 3))
def test_no_server_holds_more_than_a_third_above_the_best_placement(sizes: list[int], num_servers: int) -> None:
    """Graham's bound of the largest-first rule: 4/3 − 1/(3S) of the optimum."""
    placements = itertools.product(range(num_servers), repeat=len(sizes))
    best = min(most_held(sizes, each, num_servers) for each in placements)
    found = most_held(sizes, place_tensors(sizes, [1] * num_servers), num_servers)
    assert best <= found <= (4 / 3 - 1 / (3 * num_servers)) * best


@given(sizes, st.permutations(range(6)))
def test_what_servers_hold_does_not_depend_on_the_order_of_definition(sizes: list[int], order: list[int]) -> None:
    others = [sizes[i] for i in order if i < len(sizes)]
    assert most_held(sizes, place_tensors(sizes, [1, 1]), 2) == most_held(others, place_tensors(others, [1, 1]), 2)


def test_a_server_that_should_hold_more_gets_the_largest() -> None:
    assert place_tensors([1, 9, 1], [1, 3]) == [0, 1, 0]


@pytest.mark.parametrize("shape", PRESETS.values(), ids=str)
def test_the_shape_knows_the_models_tensors(shape: GPTShape) -> None:
    with torch.device("meta"):
        model = GPT(shape)
    assert shape.tensors == tuple(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("sharding", ["ranges", "tensors"])
def test_the_closed_form_has_each_servers_share_and_messages(world: dict[str, object], sharding: str) -> None:
    config = served(**world, sharding=sharding)
    with torch.device("meta"):
        model = GPT(config.gpt)
    plan = Plan.of(model, Roles.make(config.placement, config.world_size, config.num_servers), config)
    job = Job(config.num_workers, config.gpt.tensors)
    for server, (rank, shard) in zip(range(len(plan.roles.servers)), shards(config, job).items(), strict=True):
        chunks = plan.of_server(server)
        assert plan.roles.servers[server] == rank
        assert sum(chunk.size for chunk in chunks) / job.num_parameters == pytest.approx(shard.share, rel=1e-2)
        assert len(chunks) == shard.messages
    found = push_pull(config, job)
    sent = [volume.bytes_sent or 0 for volume in found.per_rank]
    assert len(sent) == config.world_size
    if sharding == "tensors":
        assert all(float(number).is_integer() for number in sent)  # counts are compared without tolerance
    assert sum(sent) == pytest.approx(sum(volume.bytes_received or 0 for volume in found.per_rank))


def test_gpt2s_token_embedding_is_a_hot_tensor_from_4_servers_on() -> None:
    shape = PRESETS["gpt2"]
    share = shape.vocab_size * shape.n_embd / shape.num_parameters
    assert share == pytest.approx(0.31, abs=0.001)
    for num_servers in (2, 4, 8):
        config = served(model="gpt2", n_layer=12, n_embd=768, n_head=12, block_size=1024, num_workers=1,
                        num_servers=num_servers, sharding="tensors")  # fmt: skip
        most = max(shard.share for shard in shards(config, Job(1, shape.tensors)).values())
        assert most == pytest.approx(max(share, 1 / num_servers), rel=0.02)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"strategy": "mpi_ring", "num_workers": 2}, "sharding: mpi_ring has no servers"),
        ({"strategy": "parameter_server", "num_servers": 17, "n_layer": 1}, "16 whole tensors leave 1 of 17 servers"),
    ],
    ids=str,
)
def test_whole_tensors_that_cannot_be_placed_are_refused(values: dict[str, object], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        make_config({**values, "sharding": "tensors"}, "here")


def test_a_cell_of_ranges_keeps_the_name_that_it_had_before_there_was_a_choice() -> None:
    def named(sharding: str) -> str:
        return RunConfig.model_validate({"strategy": "parameter_server", "sharding": sharding}).digest()

    assert named("ranges") == RunConfig(strategy="parameter_server").digest() != named("tensors")
