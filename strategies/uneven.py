"""Workers of a user's own script that take unequal numbers of steps: an error on all ranks, not a wait for ever."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch
from mpi4py import MPI
from torch import nn
from torch.utils.hooks import RemovableHandle

from strategies import join
from strategies.catalogue import Entry
from strategies.gradients import on_gradient

if TYPE_CHECKING:
    from strategies.base import Strategy

POLL_S = 0.5
TAG = 1


class StepWatch:
    """Tells the other ranks when this one closes, and ends all ranks if this one begins a step that needs a closed one.

    A step begins with its first gradient; where passes gather weights or need other ranks' layers, with its forward.
    """

    def __init__(self, strategy: Strategy, comm: MPI.Intracomm, entry: Entry) -> None:
        """Wrap the strategy's methods. Collective."""
        self._strategy, self._comm = strategy, comm.Dup()
        self._forward_waits = entry.gathers_weights or bool(entry.splits)
        self._steps, self._in_step = 0, False
        self._steps_of: dict[int, int] = {}  # of the ranks that have closed
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="steps", daemon=True)
        self._hooks: list[RemovableHandle] = []
        self._told: list[MPI.Request] = []  # a request owns the message until it is sent
        self._prepare, self._step, self._close = strategy.prepare, strategy.step, strategy.close
        strategy.prepare, strategy.step, strategy.close = self.prepare, self.step, self.close  # type: ignore[method-assign]

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Prepare, then watch the model's passes and the other ranks. Collective."""
        module = self._prepare(model, optimizer)
        if self._forward_waits:
            self._hooks = [module.register_forward_pre_hook(self._forward)]
        else:
            parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
            self._hooks = [on_gradient(parameter, self._begin) for parameter in parameters]
        self._thread.start()
        return module

    def step(self) -> None:
        """Apply the update; the step has ended."""
        self._step()
        self._steps, self._in_step = self._steps + 1, False

    def close(self) -> None:
        """Tell the other ranks how many steps this one took, then close. Collective."""
        for hook in self._hooks:
            hook.remove()
        for rank in range(self._comm.size):
            if rank != self._comm.rank:
                self._told.append(self._comm.isend(self._steps, rank, TAG))
        self._close()
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _begin(self, *_: object) -> None:
        self._in_step = True

    def _forward(self, module: nn.Module, _: object) -> None:
        self._in_step |= module.training and torch.is_grad_enabled()

    def _watch(self) -> None:
        """Look twice a second whether this rank has begun a step that a closed rank did not take."""
        begun_before = -1
        while not self._closed.wait(POLL_S):
            status = MPI.Status()
            while self._comm.iprobe(MPI.ANY_SOURCE, TAG, status):
                self._steps_of[status.source] = self._comm.recv(None, status.source, TAG)
            begun = self._steps + self._in_step
            missing = [rank for rank, steps in self._steps_of.items() if steps < begun]
            if missing and begun == begun_before:
                steps = self._steps_of[missing[0]]
                join.abort(
                    self._comm,
                    f"rank {missing[0]} has closed after {steps} steps, and rank {self._comm.rank} takes a further "
                    f"one, which needs its gradient: every worker must take the same number of steps",
                )
            begun_before = begun


def watch(strategy: Strategy, comm: MPI.Intracomm, entry: Entry) -> None:
    """Watch the steps of a strategy whose workers all need each other in every step. Collective.

    Servers find the same out themselves. MPI must allow calls from any thread.
    """
    needs_all = entry.exact and entry.communicates and not entry.has_servers
    if needs_all and comm.size > 1 and MPI.Query_thread() == MPI.THREAD_MULTIPLE:
        StepWatch(strategy, comm, entry)
