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


def message_sizes(smallest: int, largest: int, size: int) -> list[int]:
    """Return numbers of elements from the smallest message to the largest, both included, a factor of 4 apart.

    Not below two elements per rank: so short a vector cannot be cut into blocks for all ranks.
    """
    sizes = [max(smallest, 2 * size)]
    while sizes[-1] < largest:
        sizes.append(min(4 * sizes[-1], largest))
    return sizes


def identify_allreduce(
    allreduce: Allreduce, rank: int, size: int, num_elements: int = 1 << 18, dtype: torch.dtype = torch.float32
) -> str:
    """Name the algorithm behind `allreduce` (a sum): ``ring``, ``any`` (2 ranks or fewer) or ``not_ring``.

    Floating-point addition is not associative, so the order of a sum shows in its last bits. A ring adds
    block b in rank order beginning at a rank that differs from block to block, each rank beginning 1/size
    of the vector; trees and halving-doubling begin everywhere alike. With 2 ranks all algorithms send the
    same bytes in the same order. Collective.
    """
    if size <= 2:
        return "any"
    generator = torch.Generator().manual_seed(20)
    trials = [
        _trial(allreduce, rank, size, num_elements, dtype, generator)
        for _ in range(max(1, min(MAX_TRIALS, NUM_SAMPLES // num_elements)))
    ]
    for hits in (torch.stack(ways).all(0) for ways in zip(*trials, strict=True)):
        telling = hits.sum(0) == 1  # elements that only one rank can have begun
        shares = hits[:, telling].float().mean(1) if telling.any() else torch.zeros(size)
        begins = int((shares > 0.5 / size).sum())
        # A short vector is not cut into equal blocks: some ranks may begin little or nothing of it.
        enough = size if num_elements >= LONG * size else max(2, size // 2)
        if begins >= enough and hits.any(0).float().mean() > 0.99:
            return "ring"
    return "not_ring"


NUM_SAMPLES = 4096  # elements: enough to tell a ring
MAX_TRIALS = 32  # vectors to sum: a short one has too few elements to tell from one sum
LONG = 16  # elements per rank


def _trial(
    allreduce: Allreduce, rank: int, size: int, num_elements: int, dtype: torch.dtype, generator: torch.Generator
) -> list[Tensor]:
    """Sum a random vector; return, for each direction, where the result is the sum that begins at each rank.

    Two tensors of shape (size, samples), bool.
    """
    samples = slice(None, None, max(1, num_elements // NUM_SAMPLES))
    shape = (size, len(range(num_elements)[samples]))
    exponents = torch.randint(-4, 5, shape, generator=generator)
    inputs = torch.ldexp(torch.rand(shape, generator=generator) - 0.5, exponents).to(dtype)
    vector = torch.zeros(num_elements, dtype=dtype)
    vector[samples] = inputs[rank]
    result = allreduce(vector)[samples]
    sums = [torch.stack([_cyclic_sum(inputs, start, way) for start in range(size)]) for way in (1, -1)]
    return [each.eq(result) for each in sums]


def _cyclic_sum(inputs: Tensor, start: int, direction: int) -> Tensor:
    """Add the rows one after the other, beginning at `start`."""
    size = len(inputs)
    total = inputs[start].clone()
    for i in range(1, size):
        total += inputs[(start + direction * i) % size]
    return total
