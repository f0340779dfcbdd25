"""Tensor parallelism by torch's parallelize_module: every rank holds some columns or rows of each linear layer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from strategies import process_group, sequence_parallel
from strategies.base import Observed, UnusableOptions
from strategies.options import NUMBER_FORMATS
from strategies.split import SplitModel, gradient, sum_of_squares

FP32_BYTES = NUMBER_FORMATS["fp32"].nbytes
STYLES: dict[str, type[ParallelStyle]] = {"columns": ColwiseParallel, "rows": RowwiseParallel}


class StandIn(Protocol):
    """A layer that stands for a linear one, computes nothing, and divides itself."""

    def divide(self, size: int, is_columns: bool, add_up: Callable[[Tensor], None]) -> None:
        """Keep one of `size` parts; call `add_up` with activations where a linear layer's are summed over the ranks."""
        ...


class TensorParallel(SplitModel):
    """Linear layers in pairs, columns then rows (Shoeybi et al., Megatron-LM, 2019); an allreduce between copies.

    A layer of columns reads the whole activations, and the gradient of these is summed over the ranks in backward; a
    layer of rows reads its part, and its output is summed in forward. All other parameters are on every rank.
    """

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Keep this rank's part of rank 0's model. Collective."""
        if not hasattr(model, "split_linears"):
            raise UnusableOptions("the model has no method split_linears(), which names the layers to divide")
        super().prepare(model, optimizer)
        stages: Any = model
        self._layers: dict[str, Division] = {
            name: Division(how, self.place.size) for name, how in stages.split_linears().items()
        }
        before = {parameter: name for name, parameter in model.named_parameters()}
        self._divide(model)
        self._held = dict(model.named_parameters())
        # The optimizer updates plain tensors, which share memory with this rank's parts.
        self._plain = {name: nn.Parameter(local(p.data)) for name, p in self._held.items()}
        for settings in optimizer.param_groups:
            settings["params"] = [self._plain[before[p]] for p in settings["params"]]
        self._parameters = [p for settings in optimizer.param_groups for p in settings["params"]]
        self._start_servers()
        return model

    def _divide(self, model: nn.Module) -> None:
        """Keep this rank's part of every linear layer, by torch's means or by the layer's own."""
        layers = {name: model.get_submodule(name) for name in self._layers}
        real = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}
        for name, layer in layers.items():
            division, stand_in = self._layers[name], cast(StandIn, layer)
            if name not in real:
                stand_in.divide(division.size, division.is_columns, partial(self._add_up, division.is_columns))
            elif division.is_columns:
                for parameter in layer.parameters():
                    parameter.data = division.contiguous(parameter.data)
        group = self._of_replica.group
        assert group is not None
        mesh = DeviceMesh.from_group(
            group, next(model.parameters()).device.type, mesh_dim_names=(process_group.mesh_name(),)
        )
        if self.options.sequence_parallel:
            first, *norms = cast(Any, model).split_sequence()
            linears = {name: self._layers[name].is_columns for name in real}
            parallelize_module(model, mesh, sequence_parallel.styles(linears, norms))
            ends = model.get_submodule(first), model.get_submodule(norms[-1])
            self._hooks += sequence_parallel.divide_between(*ends, mesh)
            self._hooks.append(ends[1].register_forward_hook(self._count_ends))
        else:
            parallelize_module(model, mesh, {name: STYLES[self._layers[name].style]() for name in real})
        self._install_counters(real)

    def _add_up(self, in_backward: bool, activations: Tensor) -> None:
        """Replace activations by their sums over the ranks of this copy; note how long that takes."""
        began = time.perf_counter()
        dist.all_reduce(activations, group=self._of_replica.group)
        self._count(activations.numel())
        seconds = time.perf_counter() - began
        if in_backward:
            self.wait_in_backward_s += seconds
        else:
            self.wait_in_forward_s += seconds

    def _count(self, num_elements: int) -> None:
        """Count a sum of activations over the ranks, or its two halves, one in forward and one in backward."""
        if not self.options.sequence_parallel:
            self.counters.add(*vars(self._of_replica.volume_of_sum(num_elements, FP32_BYTES)).values())
            return
        by_gloo = next(iter(self._held.values())).device.type != "cuda"
        reduced = sequence_parallel.reduced(num_elements, FP32_BYTES, self.place.size, by_gloo)
        self.counters.add(*vars(reduced).values())
        self._count_gathered(num_elements)

    def _count_ends(self, _: nn.Module, __: object, output: Tensor) -> None:
        """Count that all tokens are gathered for the output head in forward, and for the embedding in backward."""
        self._count_gathered(2 * output.numel())

    def _count_gathered(self, num_elements: int) -> None:
        self.counters.add(*vars(sequence_parallel.gathered(num_elements, FP32_BYTES, self.place.size)).values())

    def _install_counters(self, layers: Mapping[str, nn.Module]) -> None:
        """Count the sums of activations as torch's layers are called; backward sums as many gradients."""
        for name, layer in layers.items():
            if self._layers[name].is_columns:  # `inputs` are all tokens', also where each rank holds a part of them
                hook = layer.register_forward_pre_hook(lambda _, inputs: self._count(inputs[0].numel()), prepend=True)
            else:
                parts = self.place.size if self.options.sequence_parallel else 1
                hook = layer.register_forward_hook(lambda _, __, output, n=parts: self._count(n * output.numel()))
            self._hooks.append(hook)

    def synchronize(self) -> None:
        """Add up what each rank has of gradients that depend on all tokens; take the mean of all copies'."""
        partial_sums = [local(gradient(p)) for p in self._held.values() if sequence_parallel.is_partial(gradient(p))]
        if partial_sums:
            self._sum(self._of_replica, partial_sums)
        for name, parameter in self._held.items():
            self._plain[name].grad = local(gradient(parameter))
            parameter.grad = None
        self._average_over_copies()

    def step(self) -> None:
        """Apply the mean gradient, and begin the next step's times anew."""
        super().step()
        self.wait_in_forward_s = self.wait_in_backward_s = 0.0

    def observe(self) -> Observed:
        """Add how long layers that divide themselves stood still for other ranks; torch's do not tell."""
        return replace(
            super().observe(), wait_in_forward_s=self.wait_in_forward_s, wait_in_backward_s=self.wait_in_backward_s
        )

    def _norm(self, gradients: Sequence[Tensor]) -> float:
        """Add up the squares of all parts; what every rank holds counts once."""
        divided = {id(gradient(self._plain[name])) for name in self._held if self._division(name) is not None}
        parts = [each for each in gradients if id(each) in divided]
        everywhere = [each for each in gradients if id(each) not in divided]
        return math.sqrt(self._sum_over_parts(sum_of_squares(parts)) + sum_of_squares(everywhere))

    def _division(self, parameter: str) -> Division | None:
        """Return how a parameter is divided; None if every rank holds it."""
        layer, _, name = parameter.rpartition(".")
        division = self._layers.get(layer)
        return division if division and (division.is_columns or name == "weight") else None

    def whole(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return on rank 0 the whole weights of its copy; collective."""
        found = {}
        for name, part in weights.items():
            division = self._division(name)
            parts = self.group.gather(part)[: self.place.size] if division else []
            found[name] = division.joined(parts) if division and parts else part
        return found


class Division:
    """How one linear layer is divided: "columns" or "rows", or "3 columns" where its rows are those of 3 layers."""

    def __init__(self, how: str, size: int) -> None:
        *number, self.style = how.split()
        self._number, self.size = int(number[0]) if number else 1, size

    @property
    def is_columns(self) -> bool:
        """Whether each rank computes some of the outputs, else it reads some of the inputs."""
        return self.style == "columns"

    def contiguous(self, tensor: Tensor) -> Tensor:
        """Return a weight or bias whose rows are sorted by rank, so that a rank has its share of each of 3 layers."""
        return self._swapped(tensor, self._number, self.size)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the whole weight or bias, in its own order of rows, of the ranks' parts."""
        if not self.is_columns:
            return torch.cat(list(parts), dim=1)
        return self._swapped(torch.cat(list(parts)), self.size, self._number)

    @staticmethod
    def _swapped(tensor: Tensor, outer: int, inner: int) -> Tensor:
        """Return rows in `outer` groups of `inner` groups as `inner` groups of `outer` groups."""
        return tensor.view(outer, inner, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a DTensor, which shares its memory; any other tensor as it is."""
    part: Tensor = getattr(tensor, "to_local", lambda: tensor)()
    return part
