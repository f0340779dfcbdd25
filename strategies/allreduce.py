"""What an allreduce moves, and which algorithm a library runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from strategies.volume import Volume

Allreduce = Callable[[Tensor], Tensor]


def ring_volume(num_elements: int, element_bytes: int, rank: int, size: int) -> Volume:
    """Return what one rank of a ring-allreduce of a vector sends and receives; in how many messages is unknown.

    The vector is cut into `size` blocks, the first `num_elements % size` of them one element longer.
    Reduce-scatter passes on every block but rank+1, allgather every block but rank+2; what arrives is what
    the left neighbour passes on. (Patarasuk and Yuan, 2009; block numbering as in Open MPI.)
    """
    if size == 1:
        return Volume(0, 0, None, None)

    def sent(of: int) -> int:
        kept = _block(num_elements, (of + 1) % size, size) + _block(num_elements, (of + 2) % size, size)
        return (2 * num_elements - kept) * element_bytes

    return Volume(sent(rank), sent((rank - 1) % size), None, None)


def _block(num_elements: int, index: int, size: int) -> int:
    return num_elements // size + (index < num_elements % size)


def identify_allreduce(allreduce: Allreduce, rank: int, size: int, num_elements: int = 1 << 18) -> str:
    """Name the algorithm behind `allreduce` (a sum): ``ring``, ``any`` (2 ranks or fewer) or ``not_ring``.

    Floating-point addition is not associative, so the order of a sum shows in its last bits. A ring adds
    block b in rank order beginning at a rank that differs from block to block, each rank beginning 1/size
    of the vector; trees and halving-doubling begin everywhere alike. With 2 ranks all algorithms send the
    same bytes in the same order. Collective.
    """
    if size <= 2:
        return "any"
    generator = torch.Generator().manual_seed(20)
    samples = slice(None, None, max(1, num_elements >> 12))  # 4096 elements are enough to tell a ring
    shape = (size, len(range(num_elements)[samples]))
    exponents = torch.randint(-8, 9, shape, generator=generator)
    inputs = torch.ldexp(torch.rand(shape, generator=generator) - 0.5, exponents)
    vector = torch.zeros(num_elements)
    vector[samples] = inputs[rank]
    result = allreduce(vector)[samples]
    matches = []
    for direction in (1, -1):
        sums = torch.stack([_cyclic_sum(inputs, start, direction) for start in range(size)])
        hits = sums.eq(result).to(torch.int8)
        telling = hits.sum(0) == 1  # elements whose sum has these bits from one starting rank only
        shares = hits[:, telling].float().mean(1) if telling.any() else torch.zeros(size)
        matches.append(bool((shares > 0.5 / size).all() and hits.sum(0).bool().float().mean() > 0.99))
    return "ring" if any(matches) else "not_ring"


def _cyclic_sum(inputs: Tensor, start: int, direction: int) -> Tensor:
    """Add the rows one after the other, beginning at `start`."""
    size = len(inputs)
    total = inputs[start].clone()
    for i in range(1, size):
        total += inputs[(start + direction * i) % size]
    return total
