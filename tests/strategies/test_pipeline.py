"""Laws of a pipeline that need no ranks: how a model is cut, who belongs together, and the closed forms.

tests/sweep/test_launched.py runs real stages.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.config import RunConfig
from bench.ledger import predict
from bench.rank.model import GPT
from bench.rank.train import build_model
from strategies import create
from strategies.closed_forms import pipeline_bubble
from strategies.group import SingleGroup
from strategies.pipeline import held_names, keep_only, shared_names
from strategies.split import Place, buckets
from tests.support.worlds import CPU, assert_equivalent, small, trained


def staged(**values: object) -> RunConfig:
    return small(**{"strategy": "pipeline", "num_workers": 4, "n_layer": 4, "batch_size": 8, **values})


@pytest.mark.parametrize("count", [1, 2, 4])
def test_stages_one_after_the_other_are_the_model(count: int) -> None:
    model = build_model(staged(), CPU)
    tokens = torch.randint(0, model.shape.vocab_size, (2, model.shape.block_size))
    x = tokens
    for index in range(count):
        stage = model.stage(index, count)
        assert stage.like_input(tokens).shape == x.shape
        x = stage(x)
        assert stage.like_output(tokens).shape == x.shape
    assert torch.equal(x, model.logits(tokens))
    assert torch.equal(stage.loss(x, tokens), model(tokens, tokens))


@pytest.mark.parametrize("count", [2, 4])
def test_only_the_embedding_is_held_twice(count: int) -> None:
    model = build_model(staged(), CPU)
    names = held_names(model, count)
    held = [name for part in names for name in part]
    assert set(held) == {name for name, _ in model.named_parameters()}
    assert [name for name in set(held) if held.count(name) > 1] == ["wte.weight"]
    assert shared_names(names) == {"wte.weight"}
    assert all(not shared_names(names) & set(part) for part in names[1:-1])


def test_a_stage_frees_what_it_does_not_hold() -> None:
    model: GPT = build_model(staged(), CPU)
    optimizer = torch.optim.SGD(model.parameters())
    kept = list(model.stage(1, 4).parameters())
    keep_only(kept, model, optimizer)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in kept)
    assert optimizer.param_groups[0]["params"] == kept


@given(st.integers(1, 8), st.integers(1, 8))
def test_every_rank_holds_one_part_of_one_copy(size: int, num_replicas: int) -> None:
    world = size * num_replicas
    places = [Place(rank, world, size) for rank in range(world)]
    assert len({(place.replica, place.part) for place in places}) == world
    for place in places:
        assert place.rank in place.groups_of_replicas()[place.replica]
        assert place.rank in place.groups_of_parts()[place.part]


@given(st.lists(st.integers(1, 10), min_size=1))
def test_buckets_hold_every_tensor_once_in_order(sizes: list[int]) -> None:
    tensors = [torch.empty(size) for size in sizes]
    assert [id(t) for bucket in buckets(tensors) for t in bucket] == [id(t) for t in tensors]


@pytest.mark.parametrize(
    "knobs", [{}, {"num_micro_batches": 4}, {"gradient_accumulation": 2, "clip_norm": 0.1}], ids=str
)
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_one_stage_trains_the_reference_model(schedule: str, knobs: dict[str, object]) -> None:
    config = small(strategy="pipeline", pipeline_schedule=schedule, **knobs)
    assert_equivalent(config, trained(config, create("pipeline", SingleGroup(), config)))


def test_the_volume_is_that_of_boundaries_shared_embedding_and_copies() -> None:
    config = staged(model_parallel_size=2)
    activations = 4 * config.batch_size * config.gpt.block_size * config.gpt.n_embd
    embedding = 4 * config.gpt.vocab_size * config.gpt.n_embd
    # Two copies of two stages: one boundary, forth and back; two ends; each rank's half and the embedding, once each.
    everything = 2 * (2 * activations + 2 * embedding) + 2 * (4 * config.gpt.num_parameters + embedding)
    assert 4 * (predict(config).worker.bytes_sent or 0) == pytest.approx(everything)


def test_more_micro_batches_make_a_smaller_bubble() -> None:
    shares = [pipeline_bubble(staged(num_micro_batches=number)) for number in (4, 8)]
    assert shares == [3 / 7, 3 / 11]
    assert pipeline_bubble(staged(num_workers=1)) == 0


def test_all_workers_hold_one_copy_unless_told() -> None:
    assert (staged().model_parallel_size, staged().num_micro_batches, staged().global_batch_size) == (4, 4, 8)
    two = staged(model_parallel_size=2)
    assert (two.num_replicas, two.num_micro_batches, two.global_batch_size) == (2, 2, 16)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"num_workers": 3, "model_parallel_size": 2}, "2 does not divide num_workers: 3; choose one of 1, 3"),
        ({"n_layer": 6}, "6 layers (n_layer) do not divide into 4 equal stages; choose one of 1, 2, 3, 6"),
        ({"num_micro_batches": 3}, "3 equal parts cannot be made of the 8 sequences"),
        ({"num_micro_batches": 2}, "1f1b needs as many as stages (4) or more, not 2"),
    ],
)
def test_what_cannot_be_split_is_unsupported(knobs: dict[str, object], said: str) -> None:
    assert said in (staged(**knobs).unsupported() or "")


@pytest.mark.parametrize(
    "knobs",
    [{"strategy": "ddp", "model_parallel_size": 2}, {"num_servers": 1}, {"compression": "topk"}, {"sync_every": 2}],
    ids=str,
)
def test_knobs_that_do_not_go_together_are_refused(knobs: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(name for name in knobs if name != "strategy")):
        staged(**knobs)
