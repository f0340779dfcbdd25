"""Laws of the flat layout: ranges partition it, shards are balanced, chunks are small enough."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bench.rank.model import GPT
from bench.shape import PRESETS
from strategies.base import UnusableOptions
from strategies.buffers import FlatLayout, Readiness, as_bytes, balanced_ranges, pieces
from strategies.parameter_server.plan import Plan, Roles


def meta_gpt(name: str = "gpt-nano") -> nn.Module:
    with torch.device("meta"):
        return GPT(PRESETS[name])


@given(st.integers(0, 1000), st.integers(0, 10_000), st.integers(1, 40))
def test_balanced_ranges_partition_and_differ_by_one(begin: int, length: int, parts: int) -> None:
    ranges = balanced_ranges(begin, begin + length, parts)
    assert ranges[0][0] == begin
    assert ranges[-1][1] == begin + length
    assert all(left[1] == right[0] for left, right in itertools.pairwise(ranges))
    sizes = [end - first for first, end in ranges]
    assert max(sizes) - min(sizes) <= 1


@given(
    st.sampled_from(["dedicated", "colocated", "mixed"]),
    st.integers(2, 12),
    st.integers(1, 6),
    st.integers(1024, 1 << 20),
)
def test_a_plan_covers_every_element_once_and_balances_the_servers(
    placement: str, num_workers: int, num_servers: int, chunk_bytes: int
) -> None:
    layout = FlatLayout.of(meta_gpt())
    roles = Roles.make(placement, num_workers + num_servers, 0 if placement == "colocated" else num_servers)
    plan = Plan.make(layout, roles, chunk_bytes, torch.float32)
    begins, ends = [c.begin for c in plan.chunks], [c.end for c in plan.chunks]
    assert begins == [0, *ends[:-1]]
    assert ends[-1] == layout.num_elements
    assert 0 < min(c.size for c in plan.chunks) <= max(c.size for c in plan.chunks) <= chunk_bytes / 4 + 1
    assert 1 <= plan.imbalance <= 1.01
    assert [c.index for c in plan.chunks] == list(range(len(plan.chunks)))


@given(
    st.sampled_from(["dedicated", "colocated", "mixed"]),
    st.integers(2, 12),
    st.integers(1, 6),
    st.integers(1024, 1 << 20),
)
def test_whole_tensors_lie_on_one_server_each_and_the_largest_decides(
    placement: str, num_workers: int, num_servers: int, chunk_bytes: int
) -> None:
    layout = FlatLayout.of(meta_gpt())
    roles = Roles.make(placement, num_workers + num_servers, 0 if placement == "colocated" else num_servers)
    plan = Plan.make(layout, roles, chunk_bytes, torch.float32, "tensors")
    begins, ends = [c.begin for c in plan.chunks], [c.end for c in plan.chunks]
    assert begins == [0, *ends[:-1]]
    assert ends[-1] == layout.num_elements
    assert max(c.size for c in plan.chunks) <= chunk_bytes / 4
    for begin, end in layout.ranges():
        assert len({c.server for c in plan.chunks if begin <= c.begin < end}) == 1
        assert all(begin <= c.begin < c.end <= end for c in plan.chunks if begin <= c.begin < end)
    for server in range(len(roles.servers)):
        assert [c.stripe for c in plan.of_server(server)] == list(range(len(plan.of_server(server))))
    largest = max(end - begin for begin, end in layout.ranges()) / layout.num_elements
    assert plan.imbalance >= max(1, largest * sum(roles.shares) / max(roles.shares)) - 1e-9


def test_more_servers_than_tensors_are_refused() -> None:
    layout, roles = FlatLayout.of(nn.Linear(3, 3)), Roles.make("colocated", 3, 0)
    with pytest.raises(UnusableOptions, match="2 whole tensors leave 1 of 3 servers"):
        Plan.make(layout, roles, 1024, torch.float32, "tensors")


@given(st.integers(0, 100_000), st.integers(0, 100_000))
def test_pieces_of_parameters_fill_a_span_exactly(one: int, other: int) -> None:
    begin, end = sorted((one, other))
    pieces = FlatLayout.of(meta_gpt()).overlapping(begin, end)
    assert sum(last - first for _, (first, last) in pieces) == end - begin


def test_the_layout_is_in_the_order_in_which_backward_yields_gradients() -> None:
    model = GPT(PRESETS["gpt-nano"])
    layout = FlatLayout.of(model)
    ready: list[int] = []
    for index, parameter in enumerate(layout.parameters):
        parameter.register_post_accumulate_grad_hook(lambda _, index=index: ready.append(index))
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    model(tokens, tokens).backward()
    assert sorted(ready) == list(range(len(layout.parameters)))
    late = [abs(place - index) for place, index in enumerate(ready)]
    assert max(late) <= 8  # within one block, autograd has its own order


def test_bytes_of_every_wire_dtype_are_a_view() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        tensor = torch.zeros(4, dtype=dtype)
        view = as_bytes(tensor)
        assert view.nbytes == 4 * dtype.itemsize
        view[:] = 255
        assert tensor.isnan().all()


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=8), most=st.integers(1, 60), data=st.data())
def test_a_range_is_complete_exactly_with_its_last_gradient(sizes: list[int], most: int, data: st.DataObject) -> None:
    layout = FlatLayout.of(nn.ParameterList(torch.zeros(size) for size in sizes))
    ranges = balanced_ranges(0, layout.num_elements, -(-layout.num_elements // most))
    readiness = Readiness(layout, ranges)
    order = data.draw(st.permutations(range(len(sizes))))
    for _ in range(2):
        filled = torch.zeros(layout.num_elements, dtype=torch.bool)
        complete: list[int] = []
        for done, index in enumerate(order):
            assert sorted(readiness.missing()) == sorted(order[done:])
            layout.views(filled)[index].fill_(True)
            complete += readiness.complete(index)
            assert sorted(complete) == [n for n, (begin, end) in enumerate(ranges) if filled[begin:end].all()]
        readiness.reset()


def test_pieces_of_a_buffer_are_all_of_it_and_small_enough() -> None:
    buffer = np.arange(10, dtype=np.uint8)
    for size in (1, 3, 10, 99):
        found = pieces(buffer, size)
        assert max(map(len, found)) <= size
        assert np.concatenate(found).tolist() == buffer.tolist()
