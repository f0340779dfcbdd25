"""Laws of what becomes of a mean gradient: loss scaling and clipping."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strategies.gradients import LossScaler, gradient_factor


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 4))
def test_loss_scaling_moves_as_torch_grad_scaler_does(finite: list[bool], interval: int) -> None:
    ours = LossScaler(enabled=True, growth_interval=interval)
    scale, tracker = torch.full((1,), ours.scale), torch.zeros(1, dtype=torch.int32)
    for ok in finite:
        ours.update(ok)
        torch._amp_update_scale_(scale, tracker, torch.tensor([0.0 if ok else 1.0]), 2.0, 0.5, interval)
        assert ours.scale == float(scale)


def test_without_fp16_the_scale_stays_one() -> None:
    scaler = LossScaler(enabled=False)
    scaler.update(False)
    assert scaler.scale == 1


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_clipping_bounds_the_norm_and_leaves_short_gradients_alone(norm: float, clip_norm: float) -> None:
    factor = gradient_factor(norm, clip_norm)
    assert factor * norm <= clip_norm * (1 + 1e-12)
    assert factor == pytest.approx(min(1, clip_norm / norm), rel=2e-3)
    assert gradient_factor(norm, None) == 1
