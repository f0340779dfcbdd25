"""The layers' durations of one worker add up to its step, whatever the device's clock counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bench.rank.calibrate import LayerTimer


class Counting:
    """A clock that advances by one second with every mark."""

    def __init__(self) -> None:
        self.now = 0.0

    def mark(self) -> float:
        self.now += 1
        return self.now

    @staticmethod
    def between(begin: float, end: float) -> float:
        return end - begin


@pytest.mark.parametrize("passes", [1, 3])
def test_every_second_of_a_pass_belongs_to_one_layer(passes: int) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    clock: Any = Counting()
    timer = LayerTimer(model, ["0", "2"], clock)
    for _ in range(passes):
        model(torch.ones(1, 2)).sum().backward()
    found = timer.pop_seconds()
    # Forward ends after each layer and at the end, backward with each of 4 parameters.
    assert {phase: sum(found[phase].values()) for phase in found} == {"forward": 3.0 * passes, "backward": 4.0 * passes}
    assert found["forward"] == {"0": 1.0 * passes, "2": 2.0 * passes}
    assert timer.pop_seconds() == {"forward": {"0": 0.0, "2": 0.0}, "backward": {"0": 0.0, "2": 0.0}}
