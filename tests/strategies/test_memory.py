"""Where messages lie: no message of a rank overlaps another one of it, and each is as long as what it says."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from strategies.options import NUMBER_FORMATS
from strategies.parameter_server.compression import make_codec
from strategies.parameter_server.memory import ALIGNMENT, MessageBuffers, _from_cache_line
from strategies.parameter_server.plan import Plan, Roles
from tests.support.virtual import VirtualComm, VirtualNode
from tests.support.worlds import WORLDS, served

KNOBS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"wire_dtype": "bf16"},
    "asp": {"consistency": "asp"},
    "topk": {"compression": "topk"},
}


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_messages_of_a_rank_lie_apart_in_its_memory(world: dict[str, Any], knobs: dict[str, Any]) -> None:
    config = served(**world, **knobs)
    itemsize = NUMBER_FORMATS[config.wire_dtype].nbytes
    roles = Roles.make(config.placement, config.world_size, config.num_servers)
    plan = Plan.of(nn.Linear(70, 101), roles, config)
    codec = make_codec(config)
    for rank in range(config.world_size):
        comm: Any = VirtualComm([], rank, VirtualNode(range(0), config.world_size))
        buffers = MessageBuffers(comm, plan, config.model_copy(update={"shared_memory": False}))
        messages = []
        if rank in roles.workers:
            messages += zip(plan.chunks, buffers.pushes(roles.workers.index(rank), plan.chunks).each, strict=True)
        if rank in roles.servers:
            server = roles.servers.index(rank)
            for number in range(buffers.num_replies):
                messages += zip(plan.of_server(server), buffers.replies(server, number).each, strict=True)
        for chunk, message in messages:
            assert message.nbytes == (codec.nbytes(chunk.size) if codec else chunk.size * itemsize)
        assert len({message.untyped_storage().data_ptr() for _, message in messages}) == 1
        spans = sorted((message.storage_offset(), message.storage_offset() + len(message)) for _, message in messages)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
        assert all(begin % itemsize == 0 for begin, _ in spans)
        assert (buffers.num_replies == 1) == (config.consistency == "bsp" or config.num_workers == 1)
        assert messages[0][1].dtype == torch.uint8


@pytest.mark.parametrize("begin", [0, 1, 8, 63])
def test_a_part_of_a_window_begins_with_a_cache_line_wherever_mpi_has_it_begin(begin: int) -> None:
    part = torch.empty(10 * ALIGNMENT, dtype=torch.uint8)[begin : begin + 4 * ALIGNMENT + 8]
    found = _from_cache_line(part)
    assert found.data_ptr() % ALIGNMENT == 0
    assert len(found) == len(part) - ALIGNMENT
    assert part.data_ptr() <= found.data_ptr()
    assert found.data_ptr() + len(found) <= part.data_ptr() + len(part)
