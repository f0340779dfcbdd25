"""Laws of the GPT: its size, its causality, its first loss, its ability to learn."""

from __future__ import annotations

import math

import pytest
import torch

from bench.config import RunConfig
from bench.rank.model import GPT, model_flops_utilization
from bench.rank.train import build_model, build_optimizer
from bench.shape import PRESETS, GPTShape

TINY = GPTShape(n_layer=2, n_head=2, n_embd=32, vocab_size=64, block_size=16)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(TINY.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PRESETS)
def test_closed_form_counts_the_parameters_of_every_preset(name: str) -> None:
    with torch.device("meta"):
        model = GPT(PRESETS[name])
    assert sum(p.numel() for p in model.parameters()) == PRESETS[name].num_parameters


def test_gpt2_has_its_published_size() -> None:
    assert PRESETS["gpt2"].num_parameters == 124_439_808


def test_logits_do_not_depend_on_later_tokens() -> None:
    torch.manual_seed(0)
    model = GPT(TINY)
    before, after = tokens(1, 16), tokens(1, 16)
    after[0, 10:] = (after[0, 10:] + 1) % TINY.vocab_size
    first, second = model.logits(before), model.logits(after)
    assert torch.equal(first[:, :10], second[:, :10])
    assert not torch.allclose(first[:, 10:], second[:, 10:])


def test_logits_depend_on_earlier_tokens() -> None:
    torch.manual_seed(0)
    model = GPT(TINY)
    before, after = tokens(1, 16), tokens(1, 16)
    after[0, 0] = (after[0, 0] + 1) % TINY.vocab_size
    assert (model.logits(before)[:, -1] != model.logits(after)[:, -1]).any()


def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    torch.manual_seed(0)
    loss = GPT(TINY)(tokens(8, 16), tokens(8, 16, seed=1))
    assert float(loss.detach()) == pytest.approx(math.log(TINY.vocab_size), rel=0.02)


def test_overfits_one_batch() -> None:
    config = RunConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=64, block_size=16, learning_rate=1e-2)
    model = build_model(config, torch.device("cpu"))
    optimizer = build_optimizer(config, model)
    x, y = tokens(4, 16), tokens(4, 16, seed=1)
    for _ in range(100):
        loss = model(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 0.1


def test_initial_weights_are_the_same_on_every_rank() -> None:
    config = RunConfig(seed=5)
    ours, theirs = (build_model(config, torch.device("cpu")).state_dict() for _ in range(2))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_residual_projections_are_initialised_smaller() -> None:
    torch.manual_seed(0)
    model = GPT(PRESETS["gpt-mini"])
    block = model.blocks[0]
    scale = math.sqrt(2 * PRESETS["gpt-mini"].n_layer)
    assert float(block.fc.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(block.proj.weight.detach().std()) == pytest.approx(0.02 / scale, rel=0.05)


def test_mfu_is_one_at_the_peak() -> None:
    peak = 1e12
    assert model_flops_utilization(peak / TINY.flops_per_token, TINY, peak) == pytest.approx(1)


def test_flops_per_token_by_the_palm_formula() -> None:
    shape = PRESETS["gpt2"]
    multiplied = shape.num_parameters - shape.block_size * shape.n_embd
    attention = 12 * shape.n_layer * shape.n_head * (shape.n_embd // shape.n_head) * shape.block_size
    assert shape.flops_per_token == 6 * multiplied + attention


def test_only_matrices_and_embeddings_decay() -> None:
    config = RunConfig(weight_decay=0.5)
    optimizer = build_optimizer(config, build_model(config, torch.device("cpu")))
    for group in optimizer.param_groups:
        assert all((p.dim() >= 2) == (group["weight_decay"] == 0.5) for p in group["params"])
