"""Tensor parallelism by torch's parallelize_module: every rank holds some columns or rows of each linear layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from strategies import process_group
from strategies.base import UnusableOptions
from strategies.split import SplitModel, gradient, sum_of_squares

STYLES: dict[str, type[ParallelStyle]] = {"columns": ColwiseParallel, "rows": RowwiseParallel}


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
        for name, division in self._layers.items():
            for parameter in model.get_submodule(name).parameters():
                if division.is_columns:
                    parameter.data = division.contiguous(parameter.data)
        group = self._of_replica.group
        assert group is not None
        mesh = DeviceMesh.from_group(
            group, next(model.parameters()).device.type, mesh_dim_names=(process_group.mesh_name(),)
        )
        parallelize_module(model, mesh, {name: STYLES[each.style]() for name, each in self._layers.items()})
        self._install_counters(model)
        self._held = dict(model.named_parameters())
        # The optimizer updates plain tensors, which share memory with this rank's parts.
        self._plain = {name: nn.Parameter(local(p.data)) for name, p in self._held.items()}
        for settings in optimizer.param_groups:
            settings["params"] = [self._plain[before[p]] for p in settings["params"]]
        self._parameters = [p for settings in optimizer.param_groups for p in settings["params"]]
        return model

    def _install_counters(self, model: nn.Module) -> None:
        """Count the sums of activations as the layers are called; backward sums as many gradients."""

        def count(inputs: Tensor) -> None:
            moved = self._of_replica.volume_of_sum(inputs.numel(), inputs.element_size())
            self.counters.add(*vars(moved).values())

        for name, division in self._layers.items():
            module = model.get_submodule(name)
            if division.is_columns:
                self._hooks.append(module.register_forward_pre_hook(lambda _, inputs: count(inputs[0]), prepend=True))
            else:
                self._hooks.append(module.register_forward_hook(lambda _, __, output: count(output)))

    def synchronize(self) -> None:
        """Take the mean of all copies' gradients."""
        for name, parameter in self._held.items():
            self._plain[name].grad = local(gradient(parameter))
            parameter.grad = None
        self._average_over_copies()

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
        self._number, self._size = int(number[0]) if number else 1, size

    @property
    def is_columns(self) -> bool:
        """Whether each rank computes some of the outputs, else it reads some of the inputs."""
        return self.style == "columns"

    def contiguous(self, tensor: Tensor) -> Tensor:
        """Return a weight or bias whose rows are sorted by rank, so that a rank has its share of each of 3 layers."""
        return self._swapped(tensor, self._number, self._size)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the whole weight or bias, in its own order of rows, of the ranks' parts."""
        if not self.is_columns:
            return torch.cat(list(parts), dim=1)
        return self._swapped(torch.cat(list(parts)), self._size, self._number)

    @staticmethod
    def _swapped(tensor: Tensor, outer: int, inner: int) -> Tensor:
        """Return rows in `outer` groups of `inner` groups as `inner` groups of `outer` groups."""
        return tensor.view(outer, inner, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a DTensor, which shares its memory; any other tensor as it is."""
    part: Tensor = getattr(tensor, "to_local", lambda: tensor)()
    return part
