"""Sequence parallelism: where tensor parallelism does not divide layers, each rank holds a part of the tokens.

Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models (2022), by torch's SequenceParallel.
Activations are (B, T, C); T is divided. A layer of columns gathers all tokens, a layer of rows leaves each rank the
sum over the ranks for its part of them: together the two halves of the allreduce that they replace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, SequenceParallel
from torch.utils.hooks import RemovableHandle

from strategies.volume import Volume

TOKENS = Shard(1)


def styles(linears: Mapping[str, bool], norms: Sequence[str]) -> dict[str, ParallelStyle]:
    """Return torch's style of every layer; `linears` says whether each is one of columns, else it is one of rows."""
    found: dict[str, ParallelStyle] = {name: SequenceParallel() for name in norms}
    for name, is_columns in linears.items():
        found[name] = ColwiseParallel(input_layouts=TOKENS) if is_columns else RowwiseParallel(output_layouts=TOKENS)
    return found


def divide_between(first: nn.Module, last: nn.Module, mesh: DeviceMesh) -> list[RemovableHandle]:
    """Divide the tokens that one module reads and gather those that another returns; remove the hooks to end that."""

    def divide(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        whole = DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False)
        return (whole.redistribute(placements=[TOKENS]).to_local(), *inputs[1:])

    def gather(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return cast(DTensor, output).redistribute(placements=[Replicate()]).to_local()

    return [first.register_forward_pre_hook(divide), last.register_forward_hook(gather)]


def gathered(num_elements: int, element_bytes: int, size: int) -> Volume:
    """Return what one of `size` ranks moves when all get a vector of which each had an equal part, by a ring."""
    moved = (size - 1) * num_elements // size * element_bytes
    return Volume(moved, moved, None, None)


def reduced(num_elements: int, element_bytes: int, size: int, by_gloo: bool) -> Volume:
    """Return what it moves when each gets its part of a sum: Gloo sends an allreduce inside; unknown of others."""
    if not by_gloo:
        return Volume.unknown()
    half = gathered(num_elements, element_bytes, size)
    half.add(*vars(half).values())
    return half


def is_partial(tensor: Tensor) -> bool:
    """Return whether each rank holds only its tokens' part of a gradient."""
    return any(placement.is_partial() for placement in getattr(tensor, "placements", ()))
