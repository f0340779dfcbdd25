"""Laws of what emulated compute sleeps: totals by FLOPs, sources of times, speeds, jitter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.config import BadInput, RunConfig, make_config
from bench.devices import DEVICES
from bench.durations import (
    backward_flops,
    by_flops,
    durations,
    forward_flops,
    slowdown,
)
from bench.files import write_json
from bench.mpi import RankInfo
from bench.rank.calibrate import calibrate
from bench.shape import PRESETS
from tests.support.worlds import small

SECONDS = {"compute": "emulated", "emulated_forward_s": 1.0, "emulated_backward_s": 2.0}
ALONE = RankInfo("none", 0, 1, 0)


@pytest.mark.parametrize("name", PRESETS)
def test_the_layers_flops_add_up_to_the_models(name: str) -> None:
    shape = PRESETS[name]
    total = sum(forward_flops(shape).values()) + sum(backward_flops(shape).values())
    assert total == pytest.approx(shape.flops_per_token, rel=0.02)  # which counts biases and norms, too
    assert sum(backward_flops(shape).values()) == 2 * sum(forward_flops(shape).values())


@given(st.floats(0, 10), st.floats(0, 10), st.sampled_from(sorted(PRESETS)))
def test_the_layers_durations_add_up_to_the_total(forward_s: float, backward_s: float, name: str) -> None:
    shared = by_flops(PRESETS[name], forward_s, backward_s, 0)
    assert sum(shared.forward_s.values()) == pytest.approx(forward_s)
    assert sum(shared.backward_s.values()) == pytest.approx(backward_s)


def test_a_device_takes_flops_over_peak_times_mfu() -> None:
    config = RunConfig(model="gpt2", compute="emulated", device_model="a100", device_mfu=0.4, precision="bf16")
    found = durations(config)
    flops = config.batch_size * 1024 * config.gpt.flops_per_token
    assert found.compute_s == pytest.approx(flops / (0.4 * 312e12))
    assert sum(found.backward_s.values()) == pytest.approx(2 * sum(found.forward_s.values()))
    assert found.optimizer_s == pytest.approx(28 * config.gpt.num_parameters / 2039e9)


def test_every_device_can_be_chosen_and_names_its_source() -> None:
    choices = get_args(get_args(RunConfig.model_fields["device_model"].annotation)[0])
    assert set(choices) == set(DEVICES)
    assert all("data sheet" in device.source for device in DEVICES.values())


def test_a_device_without_a_rate_for_the_precision_is_refused() -> None:
    config = RunConfig(compute="emulated", device_model="v100", device_mfu=0.4, precision="bf16")
    with pytest.raises(BadInput, match="v100 has no rate for precision: bf16; use fp32 or fp16"):
        durations(config)


def test_a_calibration_is_used_by_the_run_it_was_made_for(tmp_path: Path) -> None:
    measured = calibrate(small(steps=3, gradient_accumulation=2), ALONE)
    file = tmp_path / "calibration.json"
    write_json(file, measured.model_dump())
    sleeper: dict[str, Any] = {"compute": "emulated", "compute_from": str(file), "gradient_accumulation": 2}
    found = durations(small(**sleeper))
    assert (found.forward_s, found.backward_s) == (measured.forward_s, measured.backward_s)
    assert found.optimizer_s == measured.optimizer_s > 0
    assert list(found.forward_s) == list(forward_flops(small().gpt))
    assert all(seconds > 0 for layers in (found.forward_s, found.backward_s) for seconds in layers.values())
    for other in ({"batch_size": 8}, {"n_layer": 1}, {"precision": "bf16"}):
        with pytest.raises(BadInput, match=f"measured with {next(iter(other))}: .*this run has"):
            durations(small(**{**sleeper, **other}))
    text = file.read_text()
    for wrong in ("-1", "Infinity", "NaN", "true", '"soon"'):
        file.write_text(text.replace(str(measured.optimizer_s), wrong))
        with pytest.raises(BadInput, match=r"calibration.json: optimizer_s"):
            durations(small(**sleeper))
    file.write_text("{}")
    with pytest.raises(BadInput, match="field required"):
        durations(small(**sleeper))


def test_jitter_has_mean_one_and_the_given_variation() -> None:
    config = RunConfig.model_validate({**SECONDS, "strategy": "independent", "num_workers": 4, "compute_cv": 0.3})
    factors = np.array([[slowdown(config, worker, step) for step in range(2500)] for worker in range(4)])
    assert factors.mean() == pytest.approx(1, abs=0.01)
    assert factors.std() == pytest.approx(0.3, rel=0.05)
    assert len(np.unique(factors)) == factors.size  # no worker and no step shares its luck with another
    assert slowdown(config, 3, 7) == factors[3, 7]
    assert slowdown(config.model_copy(update={"seed": 1}), 3, 7) != factors[3, 7]


def test_without_jitter_only_the_speed_counts() -> None:
    config = RunConfig.model_validate(
        {**SECONDS, "strategy": "independent", "num_workers": 4, "speed_factor": "3=0.5,*=2"}
    )
    assert [slowdown(config, worker, 5) for worker in range(4)] == [0.5, 0.5, 0.5, 2]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"compute": "emulated"}, "exactly one of: compute_from; device_model and device_mfu; emulated_forward_s"),
        ({"compute": "emulated", "device_model": "a100"}, "exactly one of"),
        ({**SECONDS, "compute_from": "c.json"}, "exactly one of"),
        ({"compute": "emulated", "compute_from": "c.json", "emulated_optimizer_s": 1}, "compute_from gives it already"),
        ({"compute_cv": 0.1}, "compute_cv: compute: real does not sleep"),
        ({"compute": "none", "speed_factor": "0=0.5"}, "speed_factor: compute: none does not sleep"),
        ({**SECONDS, "check_equivalence": True}, "check_equivalence: compute: emulated trains nothing"),
        ({"compute": "none", "check_equivalence": True}, "check_equivalence: compute: none trains nothing"),
        ({**SECONDS, "speed_factor": "1=0.5"}, "no worker '1' of 1"),
        ({**SECONDS, "speed_factor": "0=0"}, "'0=0' is no speed from 1e-6 to 1e6"),
        ({**SECONDS, "speed_factor": "0=fast"}, "'0=fast' is no speed from 1e-6 to 1e6"),
        ({**SECONDS, "speed_factor": "0.5"}, "no worker '0.5'"),
    ],
)
def test_unusable_durations_are_refused_in_one_line(values: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput) as refusal:
        make_config(values, "here")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
