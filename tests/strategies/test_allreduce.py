"""Laws of an allreduce: the bytes of a ring, and the order of its sums."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.rank import numbers
from strategies.allreduce import identify_allreduce, message_sizes, ring_volume
from strategies.base import Observed


@given(st.integers(0, 10_000), st.sampled_from([2, 4]), st.integers(1, 17))
def test_a_ring_conserves_bytes(num_elements: int, element_bytes: int, size: int) -> None:
    ranks = [ring_volume(num_elements, element_bytes, rank, size) for rank in range(size)]
    sent = [volume.bytes_sent or 0 for volume in ranks]
    assert sum(sent) == sum(volume.bytes_received or 0 for volume in ranks)
    assert sum(sent) == 2 * (size - 1) * num_elements * element_bytes
    for each in sent:
        assert abs(each - 2 * (size - 1) / size * num_elements * element_bytes) <= 2 * element_bytes


@given(st.integers(0, 1000), st.integers(1, 9))
def test_a_ring_counts_what_its_schedule_sends(num_elements: int, size: int) -> None:
    blocks = [num_elements // size + (b < num_elements % size) for b in range(size)]
    for rank in range(size):
        reduce_scatter = [blocks[(rank - hop) % size] for hop in range(size - 1)]
        allgather = [blocks[(rank + 1 - hop) % size] for hop in range(size - 1)]
        assert ring_volume(num_elements, 1, rank, size).bytes_sent == sum(reduce_scatter) + sum(allgather)


def simulate(size: int, algorithm: str, num_elements: int = 1 << 12, dtype: torch.dtype = torch.float32) -> str:
    """Identify an allreduce whose order of summation is known; one thread per rank."""
    vectors: list[Tensor | None] = [None] * size
    barrier = threading.Barrier(size)
    answers = [""] * size

    def allreduce(vector: Tensor, rank: int) -> Tensor:
        vectors[rank] = vector
        barrier.wait()
        stacked = torch.stack([v for v in vectors if v is not None])
        barrier.wait()
        return RINGS[algorithm](stacked)

    def one(rank: int) -> None:
        answers[rank] = identify_allreduce(lambda vector: allreduce(vector, rank), rank, size, num_elements, dtype)

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "num_elements"), [(3, 6), (4, 100), (8, 16)])
@pytest.mark.parametrize("algorithm", RINGS)
def test_short_vectors_tell_as_well(algorithm: str, size: int, num_elements: int, dtype: torch.dtype) -> None:
    expected = "ring" if algorithm in ("ring", "backward") else "not_ring"
    assert simulate(size, algorithm, num_elements, dtype) == expected


@given(st.integers(1, 10_000), st.integers(0, 10**6), st.integers(1, 32))
def test_sizes_reach_from_the_smallest_message_to_the_largest(smallest: int, more: int, size: int) -> None:
    sizes = message_sizes(smallest, smallest + more, size)
    assert sizes[0] == max(smallest, 2 * size)
    assert sizes[-1] == max(sizes[0], smallest + more)
    assert all(before < after <= 4 * before for before, after in pairwise(sizes))


def test_one_size_that_is_no_ring_is_enough_to_be_none() -> None:
    assert Observed().allreduce_algorithm is None
    assert Observed(allreduce_of_bytes={64: "ring", 256: "ring"}).allreduce_algorithm == "ring"
    found = Observed(allreduce_of_bytes={64: "not_ring", 256: "ring"})
    assert found.allreduce_algorithm == "not_ring"
    assert numbers.allreduce(found) == {
        "allreduce_algorithm": "not_ring", "identified_bytes": "64 256", "not_ring_bytes": "64",
    }  # fmt: skip


def test_two_ranks_have_only_one_order() -> None:
    assert simulate(2, "linear") == "any"
