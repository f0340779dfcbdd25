"""Pipeline parallelism by torch.distributed.pipelining: every rank holds some layers and passes activations on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from strategies.base import Observed, UnusableOptions
from strategies.options import Options
from strategies.split import Place, Ranks, SplitModel, gradient, sum_of_squares
from strategies.volume import Volume

SCHEDULES: dict[str, type[PipelineScheduleSingle]] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class Part(Protocol):
    """A stage as a model's `stage(index, count)` returns it: a module that shares the model's parameters.

    The first stage is called with a micro-batch of the inputs, every other one with what the stage before it returned.
    """

    def like_input(self, inputs: Tensor) -> Tensor:
        """Return a tensor on the meta device like what the stage is called with for a micro-batch of the model's."""
        ...

    def like_output(self, inputs: Tensor) -> Tensor:
        """Return a tensor on the meta device like what the stage returns for a micro-batch of the model's inputs."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of what the last stage returned: a scalar."""
        ...


class Pipeline(SplitModel):
    """Stages of consecutive layers on the ranks of each copy of the model; an allreduce between the copies."""

    @property
    def has_loss(self) -> bool:
        """Whether this is the last stage."""
        return self.place.part == self.place.size - 1

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Keep this rank's stage of rank 0's model, and free the rest. Collective."""
        if not hasattr(model, "stage"):
            raise UnusableOptions("the model has no method stage(index, count), which returns one of `count` stages")
        super().prepare(model, optimizer)
        place, rank = self.place, self.group.rank
        self._ends = Ranks([[ranks[0], ranks[-1]] for ranks in place.groups_of_replicas() if place.size > 1], rank)
        self._names = held_names(model, place.size)
        stages: Any = model
        module: nn.Module = stages.stage(place.part, place.size)
        self._parameters = list(module.parameters())
        keep_only(self._parameters, model, optimizer)
        shared = shared_names(self._names) & set(self._names[place.part])
        self._shared = [model.get_parameter(name) for name in sorted(shared)]
        self._start_servers()
        self._stage = ScheduledStage(
            module, place, self._of_replica.group, next(module.parameters()).device, self.options,
            lambda loss: self.scaled(loss) / self.options.num_micro_batches,
        )  # fmt: skip
        return self._stage

    def synchronize(self) -> None:
        """Add up the shared parameters' gradients of both ends, and take the mean of all copies'."""
        if self._shared:
            self._sum(self._ends, [gradient(p) for p in self._shared])
        self._average_over_copies()

    def _norm(self, gradients: Sequence[Tensor]) -> float:
        """Add up the squares of all stages, shared parameters' only once."""
        twice = {id(gradient(p)) for p in self._shared} if self.place.part else set()
        own = [each for each in gradients if id(each) not in twice]
        return math.sqrt(self._sum_over_parts(sum_of_squares(own)))

    def step(self) -> None:
        """Apply the mean gradient, and begin the next step's times anew."""
        super().step()
        self._stage.begin_step()

    def observe(self) -> Observed:
        """Return what was sent between stages and between copies, and how this stage spent the step."""
        observed = super().observe()
        observed.moved.add(*vars(self._stage.moved).values())
        return replace(
            observed,
            wait_in_forward_s=self._stage.wait_s,
            backward_in_forward_s=self._stage.backward_s,
        )

    def whole(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return on rank 0 the weights of all stages of its copy; collective."""
        own = {name: weights[name] for name in self._names[self.place.part]}
        parts = self.group.gather(own)[: self.place.size]
        found: dict[str, Tensor] = {}
        for part in reversed(parts):  # of a shared parameter the first stage's copy stays
            found.update(part)
        return {name: found[name] for name in weights} if parts else dict(weights)


class ScheduledStage(nn.Module):
    """A stage as the training loop calls it: one call is the whole schedule, backward passes included."""

    def __init__(
        self, module: nn.Module, place: Place, group: dist.ProcessGroup | None, device: torch.device,
        options: Options, scaled: Callable[[Tensor], Tensor],
    ) -> None:  # fmt: skip
        super().__init__()
        self.module = module
        self.moved = Volume()
        self._place, self._group, self._device, self._options, self._scaled = place, group, device, options, scaled
        self._schedule: PipelineScheduleSingle | None = None
        self.begin_step()

    def begin_step(self) -> None:
        """Reset the times, seconds."""
        self.wait_s = self.backward_s = self._forward_s = 0.0

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Do the forward and backward passes of all micro-batches; return the mean loss, of the last stage only."""
        began, computed_s = time.perf_counter(), self._forward_s + self.backward_s
        schedule = self._schedule or self._make_schedule(inputs)
        losses: list[Tensor] = []
        is_first, is_last = self._place.part == 0, self._place.part == self._place.size - 1
        given = (inputs,) if is_first else ()
        schedule.step(*given, target=targets if is_last else None, losses=losses, return_outputs=False)
        mean = torch.stack(self._losses).mean() if is_last else torch.zeros((), device=self._device)
        self._losses.clear()
        self.wait_s += time.perf_counter() - began - (self._forward_s + self.backward_s - computed_s)
        return mean.requires_grad_()  # so that the training loop's backward() has a leaf, and nothing to do

    def _make_schedule(self, inputs: Tensor) -> PipelineScheduleSingle:
        """Return the schedule for batches of this shape."""
        micro = inputs.chunk(self._options.num_micro_batches)[0]
        part: Any = self.module
        stage = CountingStage(self, part.like_input(micro), part.like_output(micro))
        self._losses: list[Tensor] = []
        self._schedule = SCHEDULES[self._options.pipeline_schedule](
            stage, self._options.num_micro_batches, loss_fn=self._loss, scale_grads=False
        )
        return self._schedule

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        began = time.perf_counter()
        part: Any = self.module
        loss: Tensor = part.loss(outputs, targets)
        self._losses.append(loss.detach())
        self._forward_s += time.perf_counter() - began
        return self._scaled(loss)


class CountingStage(PipelineStage):
    """A stage of torch's schedules that tells its owner how long it computed, and what it sends and receives."""

    def __init__(self, owner: ScheduledStage, inputs: Tensor, outputs: Tensor) -> None:
        place = owner._place
        super().__init__(
            owner.module, place.part, place.size, owner._device,
            input_args=inputs, output_args=outputs, group=owner._group,
        )  # fmt: skip
        self._owner = owner

    def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        """Do one micro-batch's forward."""
        began = time.perf_counter()
        outputs = super().forward_one_chunk(*args, **kwargs)
        self._owner._forward_s += time.perf_counter() - began
        return outputs

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> None:
        """Do one micro-batch's backward."""
        began = time.perf_counter()
        super().backward_one_chunk(*args, **kwargs)
        self._owner.backward_s += time.perf_counter() - began

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Return the receives of one micro-batch's activations, which follow at once."""
        return self._count(super().get_fwd_recv_ops(fwd_chunk_id), receives=True)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Return the receives of their gradients."""
        return self._count(super().get_bwd_recv_ops(bwd_chunk_id), receives=True)

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Return the sends of one micro-batch's activations."""
        return self._count(super().get_fwd_send_ops(fwd_chunk_id))

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Return the sends of their gradients."""
        return self._count(super().get_bwd_send_ops(bwd_chunk_id))

    def _count(self, ops: list[dist.P2POp], receives: bool = False) -> list[dist.P2POp]:
        nbytes = sum(op.tensor.nbytes for op in ops)
        moved = (0, nbytes, 0, len(ops)) if receives else (nbytes, 0, len(ops), 0)
        self._owner.moved.add(*moved)
        return ops


def held_names(model: nn.Module, count: int) -> list[list[str]]:
    """Return the names of each stage's parameters in the whole model."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    stages: Any = model
    return [[names[p] for p in stages.stage(index, count).parameters()] for index in range(count)]


def shared_names(names: Sequence[Sequence[str]]) -> set[str]:
    """Return the names of the parameters that the first and the last of several stages hold."""
    return set(names[0]) & set(names[-1]) if len(names) > 1 else set()


def keep_only(kept: Sequence[nn.Parameter], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Free all parameters of a model but some, and take them out of the optimizer."""
    own = set(kept)
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p in own]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    for parameter in model.parameters():
        if parameter not in own:
            parameter.data = parameter.data.new_empty(0)
