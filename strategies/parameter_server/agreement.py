"""What all ranks must have in common before training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from strategies.buffers import FlatLayout
from strategies.group import Group
from strategies.options import Options
from strategies.parameter_server.settings import GroupSettings
from strategies.parameter_server.update import RUN_ON_WORKERS, refusal


def agree(
    group: Group, layout: FlatLayout, model: nn.Module, optimizer: torch.optim.Optimizer, options: Options,
    strategy: str = "parameter_server", holders: str = "servers", fix: str = RUN_ON_WORKERS,
) -> GroupSettings | None:  # fmt: skip
    """Check that every rank has worker 0's parameters and optimizer; give it worker 0's untrained tensors. Collective.

    Return the optimizer's settings with worker 0's numbers, None if servers do not run it. ValueError if ranks differ
    or `holders` cannot run the optimizer, which `fix` mends. A model on the meta device takes no tensors.
    """
    settings = None
    if options.server_role == "update" and options.sync_every == 1:
        reason = refusal(optimizer, holders, fix)
        if reason:
            raise ValueError(f"{strategy}: {reason}")
        settings = GroupSettings(optimizer)
    shapes = [tuple(parameter.shape) for parameter in layout.parameters]
    described = type(optimizer).__name__, [len(group["params"]) for group in optimizer.param_groups], shapes
    tensors = untrained(model)
    on_cpu = {name: tensor.cpu() for name, tensor in tensors.items() if not tensor.is_meta}
    theirs, given, numbers = group.broadcast((described, on_cpu, settings.vector if settings else None))
    if theirs != described:
        raise ValueError(
            f"{strategy}: rank {group.rank} has an optimizer or trained parameters other than rank 0's; "
            f"every rank must build the same: {described[:2]} and {theirs[:2]}"
        )
    for name, tensor in tensors.items():
        if not tensor.is_meta:
            tensor.copy_(given[name])
    if settings:
        settings.adopt(numbers)
    return settings


def untrained(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model that no gradient changes: frozen parameters and buffers, by name."""
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return frozen | {name: buffer.detach() for name, buffer in model.named_buffers()}
