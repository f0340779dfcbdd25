"""Which ranks share a GPU, as NCCL sees it."""

from __future__ import annotations

import pytest

from strategies.nccl import Place, ranks_sharing_a_gpu


@pytest.mark.parametrize(
    ("places", "found"),
    [
        ([], None),
        ([("a", "0"), ("a", "1"), ("b", "0"), ("b", "1")], None),
        ([("a", "0"), ("b", "0"), ("a", "0")], (0, 2, "a")),
        ([("a", "0"), ("b", "1"), ("b", "1"), ("a", "0")], (1, 2, "b")),
    ],
)
def test_ranks_share_a_gpu_only_on_one_host(places: list[Place], found: tuple[int, int, str] | None) -> None:
    assert ranks_sharing_a_gpu(places) == found
