"""Weights that are still on their way after a step: whoever reads them from the model waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import nn
from torch.utils.hooks import RemovableHandle


class NewestWeights:
    """Calls `take` with the indices of the parameters that are about to be read.

    A module's forward reads its own parameters; `state_dict()` and `named_parameters()` of the model read all. Until
    `remove()`.
    """

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], take: Callable[[Sequence[int]], None]
    ) -> None:
        index_of = {parameter: index for index, parameter in enumerate(parameters)}
        everything = range(len(parameters))
        self._hooks: list[RemovableHandle] = []
        for module in model.modules():
            read = [index_of[p] for p in module.parameters(recurse=False) if p in index_of]
            if read:
                self._hooks.append(module.register_forward_pre_hook(partial(_before_forward, take, read)))
            hook = module.register_state_dict_pre_hook(lambda *_: take(everything))  # type: ignore[no-untyped-call]
            self._hooks.append(hook)
        self._model, named = model, model.named_parameters

        def newest(
            prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
        ) -> Iterator[tuple[str, nn.Parameter]]:
            take(everything)
            return named(prefix, recurse, remove_duplicate)

        model.named_parameters = newest  # type: ignore[method-assign]

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()
        del self._model.named_parameters


def _before_forward(take: Callable[[Sequence[int]], None], read: Sequence[int], *_: object) -> None:
    take(read)
