"""Laws of the estimate: earlier runs before the formula; emulated compute takes what it sleeps."""

from __future__ import annotations

import json

import pytest

from bench import durations
from bench.config import RunConfig
from bench.durations import MUST_MATCH, Calibration, forward_flops
from bench.sweep.estimate import rough_training_s


def training_s(**values: object) -> float:
    return rough_training_s(RunConfig(compute="emulated", steps=10, warmup_steps=0, **values))  # type: ignore[arg-type]


def test_given_durations_are_the_estimate() -> None:
    given = {"emulated_forward_s": 1.0, "emulated_backward_s": 2.0, "emulated_optimizer_s": 0.5}
    assert training_s(**given) == pytest.approx(10 * 3.5)
    assert training_s(**given, speed_factor="0=0.5") == pytest.approx(10 * 7.0)


@pytest.mark.parametrize("source", ["device_model", "compute_from"])
def test_durations_of_a_device_or_a_calibration_are_the_estimate(source: str, tmp_path: object) -> None:
    config = RunConfig()
    seconds = dict.fromkeys(forward_flops(config.gpt), 1.0)
    calibration = Calibration(
        **config.model_dump(include=set(MUST_MATCH)), shape=config.gpt, measured_on="x", steps=1,
        forward_s=seconds, backward_s=seconds, optimizer_s=1.0,
    )  # fmt: skip
    path = f"{tmp_path}/calibration.json"
    with open(path, "w", encoding="utf-8") as file:
        json.dump(calibration.model_dump(), file)
    values = {"device_model": {"device_model": "a100", "device_mfu": 0.4}, "compute_from": {"compute_from": path}}[
        source
    ]
    slept = durations.durations(RunConfig(compute="emulated", **values))  # type: ignore[arg-type]
    assert training_s(**values) == pytest.approx(10 * (slept.compute_s + slept.optimizer_s))
