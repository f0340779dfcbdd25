"""Laws shared by all strategies: bytes of a ring, the order of its sums, loss scaling, clipping."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from strategies.base import LossScaler, gradient_factor, identify_allreduce, ring_bytes


@given(st.integers(0, 10_000), st.sampled_from([2, 4]), st.integers(1, 17))
def test_a_ring_conserves_bytes(num_elements: int, element_bytes: int, size: int) -> None:
    ranks = [ring_bytes(num_elements, element_bytes, rank, size) for rank in range(size)]
    assert sum(sent for sent, _ in ranks) == sum(received for _, received in ranks)
    assert sum(sent for sent, _ in ranks) == 2 * (size - 1) * num_elements * element_bytes
    for sent, _ in ranks:
        assert abs(sent - 2 * (size - 1) / size * num_elements * element_bytes) <= 2 * element_bytes


@given(st.integers(0, 1000), st.integers(1, 9))
def test_a_ring_counts_what_its_schedule_sends(num_elements: int, size: int) -> None:
    blocks = [num_elements // size + (b < num_elements % size) for b in range(size)]
    for rank in range(size):
        reduce_scatter = [blocks[(rank - hop) % size] for hop in range(size - 1)]
        allgather = [blocks[(rank + 1 - hop) % size] for hop in range(size - 1)]
        assert ring_bytes(num_elements, 1, rank, size)[0] == sum(reduce_scatter) + sum(allgather)


def simulate(size: int, algorithm: str, rank: int = 0) -> str:
    """Identify an allreduce whose order of summation is known; one thread per rank."""
    vectors: list[Tensor | None] = [None] * size
    barrier = threading.Barrier(size)
    answers = [""] * size

    def allreduce(vector: Tensor, rank: int) -> Tensor:
        vectors[rank] = vector
        barrier.wait()
        stacked = torch.stack([v for v in vectors if v is not None])
        return RINGS[algorithm](stacked)

    def one(rank: int) -> None:
        answers[rank] = identify_allreduce(lambda vector: allreduce(vector, rank), rank, size, 1 << 12)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(answers)) == 1
    return answers[0]


def ring(inputs: Tensor, direction: int = 1) -> Tensor:
    """Block b begins at rank b and goes round."""
    size = len(inputs)
    blocks = []
    for start, block in enumerate(inputs.tensor_split(size, dim=1)):
        total = block[start].clone()
        for i in range(1, size):
            total = total + block[(start + direction * i) % size]
        blocks.append(total)
    return torch.cat(blocks)


def halving(inputs: Tensor) -> Tensor:
    """A tree: pairs, then pairs of pairs."""
    rows = list(inputs)
    while len(rows) > 1:
        rows = [rows[i] + rows[i + 1] if i + 1 < len(rows) else rows[i] for i in range(0, len(rows), 2)]
    return rows[0]


def linear(inputs: Tensor) -> Tensor:
    """One root adds everybody's vector in rank order."""
    total = inputs[0].clone()
    for row in inputs[1:]:
        total = total + row
    return total


RINGS = {"ring": ring, "backward": lambda inputs: ring(inputs, -1), "halving": halving, "linear": linear}


@pytest.mark.parametrize("size", [3, 4, 5, 8])
@pytest.mark.parametrize("algorithm", RINGS)
def test_the_order_of_a_sum_tells_a_ring_from_all_else(algorithm: str, size: int) -> None:
    assert simulate(size, algorithm) == ("ring" if algorithm in ("ring", "backward") else "not_ring")


def test_two_ranks_have_only_one_order() -> None:
    assert simulate(2, "linear") == "any"


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 4))
def test_loss_scaling_moves_as_torch_grad_scaler_does(finite: list[bool], interval: int) -> None:
    ours = LossScaler(enabled=True, growth_interval=interval)
    scale, tracker = torch.full((1,), ours.scale), torch.zeros(1, dtype=torch.int32)
    for ok in finite:
        ours.update(ok)
        torch._amp_update_scale_(scale, tracker, torch.tensor([0.0 if ok else 1.0]), 2.0, 0.5, interval)
        assert ours.scale == float(scale)


def test_without_fp16_the_scale_stays_one() -> None:
    scaler = LossScaler(enabled=False)
    scaler.update(False)
    assert scaler.scale == 1


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_clipping_bounds_the_norm_and_leaves_short_gradients_alone(norm: float, clip_norm: float) -> None:
    factor = gradient_factor(norm, clip_norm)
    assert factor * norm <= clip_norm * (1 + 1e-12)
    assert factor == pytest.approx(min(1, clip_norm / norm), rel=2e-3)
    assert gradient_factor(norm, None) == 1
