"""The settings of an optimizer's param groups, which schedulers change on workers and servers must follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class GroupSettings:
    """The numbers among the settings of every param group (learning rate, momentum, betas, ...) as one fp64 vector.

    Only settings that the optimizer itself defines: what a scheduler adds to a group for itself is left out. Numbers
    may change at every step; a change of anything else (None, text, the parameters) is an error.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._num_parameters = self._count_parameters()
        self._shape = [
            (number, name, len(_numbers(group[name]) or ()))
            for number, group in enumerate(optimizer.param_groups)
            for name in sorted(optimizer.defaults) if name in group
        ]  # fmt: skip
        self._others = self._read_others()
        self.vector = self._read()

    def _count_parameters(self) -> list[int]:
        return [len(group["params"]) for group in self._optimizer.param_groups]

    def _read_others(self) -> dict[tuple[int, str], Any]:
        groups = self._optimizer.param_groups
        return {(number, name): groups[number][name] for number, name, length in self._shape if not length}

    def _read(self) -> np.ndarray:
        values: list[float] = []
        for number, name, length in self._shape:
            if length:
                numbers = _numbers(self._optimizer.param_groups[number][name]) or []
                if len(numbers) != length:
                    raise RuntimeError(
                        f"param_groups[{number}][{name!r}] is no longer {length} number(s), as in prepare()"
                    )
                values += numbers
        return np.array(values)

    def changed(self) -> bool:
        """Read `vector` again; return whether it differs from before. RuntimeError if another setting has changed."""
        if self._count_parameters() != self._num_parameters:
            raise RuntimeError("the optimizer has other parameters than in prepare(): call add_param_group() before it")
        for (number, name), value in self._read_others().items():
            if value is not self._others[number, name] and value != self._others[number, name]:
                raise RuntimeError(
                    f"param_groups[{number}][{name!r}] has changed since prepare(): servers follow numbers only"
                )
        before, self.vector = self.vector, self._read()
        return not np.array_equal(before, self.vector)

    def of_groups(self, vector: np.ndarray) -> list[dict[str, Any]]:
        """Return the settings of each param group, with the numbers of another rank's vector."""
        groups = [dict(group) for group in self._optimizer.param_groups]
        values = iter(vector.tolist())
        for number, name, length in self._shape:
            if length:
                groups[number][name] = _like(groups[number][name], [next(values) for _ in range(length)])
        return groups

    def adopt(self, vector: np.ndarray) -> None:
        """Give this rank's optimizer the numbers of another rank's vector."""
        if not np.array_equal(vector, self.vector):
            for group, settings in zip(self._optimizer.param_groups, self.of_groups(vector), strict=True):
                group.update(settings)
            self.vector = vector


def _like(value: object, numbers: list[float]) -> object:
    """Return numbers in the type of an earlier value."""
    if isinstance(value, tuple | list):
        return tuple(numbers)
    return bool(numbers[0]) if isinstance(value, bool) else numbers[0]


def _numbers(value: object) -> list[float] | None:
    """Return a setting as numbers, None if it is something else."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return [float(value)]
    if isinstance(value, bool | int | float):
        return [float(value)]
    if isinstance(value, tuple | list):
        parts = [_numbers(each) for each in value]
        return None if not parts or None in parts else [number for part in parts if part for number in part]
    return None
