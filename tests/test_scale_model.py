"""Laws of scale models: whatever decides between topologies is the target's, and the file can be swept here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.config import BadInput, RunConfig
from bench.devices import DEVICES
from bench.durations import by_flops, durations
from bench.nodes.layout import make
from bench.scale_model import EXAMPLE, communication_compute_ratio, parse_target, scale_model, scales
from bench.shape import PRESETS
from bench.sweep.file import Sweep
from bench.sweep.plan import plan

SLEEPER = {"compute": "emulated", "emulated_forward_s": 1.0, "emulated_backward_s": 2.0}
targets = st.builds(
    "{}, {}gbit, {} at {}% MFU, {} nodes, cv {}".format,
    st.sampled_from(["gpt2", "gpt2-medium", "gpt2-xl"]), st.integers(1, 100), st.sampled_from(sorted(DEVICES)),
    st.integers(5, 60), st.integers(2, 16), st.sampled_from([0, 0.1, 0.25]),
)  # fmt: skip


def runs_of(text: str, cores: int = 2) -> list[RunConfig]:
    return Sweep.model_validate(yaml.safe_load(scale_model(text, cores))).runs("scale model")


@settings(max_examples=12)
@given(targets)
def test_a_scale_model_keeps_the_deciding_ratios(text: str) -> None:
    target = parse_target(text)
    for run in runs_of(text):
        found = scales(run)
        assert found["communication_compute_ratio"] == pytest.approx(
            communication_compute_ratio(target.config), rel=1e-3
        )
        assert found["scale_payload"] == pytest.approx(found["scale_link"] * found["scale_compute"], rel=1e-3)
        assert run.world_size == target.num_nodes
        assert run.compute_cv == target.config.compute_cv
        assert run.gpt.n_layer == target.config.gpt.n_layer
        for size in ("bucket_bytes", "fusion_threshold_bytes"):
            buckets = [config.wire_bytes / getattr(config, size) for config in (run, target.config)]
            assert buckets[0] == pytest.approx(buckets[1], rel=0.01)
        optimizer_s = durations(run).optimizer_s / durations(target.config).optimizer_s
        assert optimizer_s == pytest.approx(found["scale_compute"], rel=1e-3)


@settings(max_examples=12)
@given(targets, st.sampled_from([2, 4, 16]))
def test_a_scale_model_fits_this_machine(text: str, cores: int) -> None:
    for run in runs_of(text, cores):
        assert run.link is not None
        nodes = make("sweep", run.world_size, run.link, run.num_servers)
        assert sum(nodes.rates) <= 2e9 * cores  # above, the kernel and not the link is the bottleneck
        assert run.wire_bytes >= 10 * 128 * 1024  # bursts of the token bucket


@settings(max_examples=12)
@given(targets)
def test_every_layer_keeps_its_share(text: str) -> None:
    run, there = runs_of(text)[0].gpt, parse_target(text).config.gpt
    shares = [by_flops(shape, 1, 1, 0) for shape in (run, there)]
    for phase in ("forward_s", "backward_s"):
        assert getattr(shares[0], phase) == pytest.approx(getattr(shares[1], phase), abs=0.02)
    embedding = [shape.vocab_size * shape.n_embd / shape.num_parameters for shape in (run, there)]
    assert embedding[0] == pytest.approx(embedding[1], abs=0.02)


def test_the_file_can_be_planned_and_names_what_is_not_scaled() -> None:
    text = scale_model(EXAMPLE, cores=2)
    sweep = Sweep.model_validate(yaml.safe_load(text))
    assert {run.config.world_size for launch in plan(sweep, "scale model") for run in launch} == {8}
    assert [(run.num_workers, run.num_servers) for run in runs_of(EXAMPLE)] == [(8, 0), (8, 0), (7, 1), (6, 2), (4, 4)]
    comment = text.split("defaults")[0]
    assert all(line.startswith("#") for line in comment.splitlines())
    for word in ("Held equal", "Not scaled", "unfair", "M/(B·T)", EXAMPLE):
        assert word in comment


def test_a_target_may_give_more_values() -> None:
    target = parse_target("GPT2-medium, 2 servers, 10gbit, batch 4, h100 at 35 % MFU, wire fp16, fp16, 8 Nodes, cv 0.1")
    config = target.config
    assert (config.model, config.link, config.device_model, config.device_mfu) == (
        "gpt2-medium",
        "10gbit",
        "h100",
        0.35,
    )
    assert (config.batch_size, config.precision, config.wire_dtype, config.compute_cv) == (4, "fp16", "fp16", 0.1)
    assert (target.num_nodes, target.num_servers) == (8, 2)
    assert [run.num_servers for run in runs_of("gpt2, 25gbit, a100 at 40% MFU, 8 nodes, 2 servers")] == [0, 0, 2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is not understood"),
        ("gpt2, 25 gigabit, a100 at 40% MFU, 8 nodes", "'25 gigabit' is not understood"),
        ("gpt2, 25gbit, 8 nodes", "no device in"),
        ("25gbit, a100 at 40% MFU, 8 nodes", "no model in"),
        ("gpt2, a100 at 40% MFU, 8 nodes", "no link in"),
        ("gpt2, 25gbit, a100 at 40% MFU", "no nodes in"),
        ("gpt2, 0gbit, a100 at 40% MFU, 8 nodes", "not a rate from 1kbit"),
        ("gpt2, 25gbit, a100 at 140% MFU, 8 nodes", "device_mfu: input should be less than or equal to 1"),
        ("gpt2, 25gbit, a100 at 40% MFU, 1 node", "2 cores can emulate 2 to 16"),
        ("gpt2, 25gbit, a100 at 40% MFU, 64 nodes", "64 nodes; 2 cores can emulate 2 to 16"),
        ("gpt2, 25gbit, a100 at 40% MFU, 4 nodes, 4 servers", "4 servers leave no worker of 4 nodes"),
        ("gpt2, 25gbit, a100 at 40% MFU, 4 nodes, 0 servers", "'0 servers' is not understood"),
        ("gpt2, 25gbit, a100 at 4.0.0% MFU, 4 nodes", "'a100 at 4.0.0% mfu' is not understood"),
        ("gpt2, 1.2.3gbit, a100 at 40% MFU, 4 nodes", "'1.2.3gbit' is not understood"),
        ("gpt2, 25gbit, a100 at 40% MFU, " + "9" * 5000 + " nodes", "is not understood"),
        ("gpt2, 25gbit, a100 at 40% MFU, 4 nodes, 8 nodes", "'8 nodes' is a second nodes"),
        ("gpt2, gpt2-xl, 25gbit, a100 at 40% MFU, 4 nodes", "'gpt2-xl' is a second model"),
    ],
)
def test_an_unclear_target_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(BadInput) as refusal:
        scale_model(text, cores=2)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_example_is_shown_for_a_target_that_is_not_understood(psring: Callable[..., object]) -> None:
    ended = psring("scale-model", "--target", "a big cluster")
    assert ended.returncode == 2
    assert ended.stderr == f"psring: target: 'a big cluster' is not understood; write, for example, {EXAMPLE!r}\n"


def test_the_ratio_is_seconds_to_send_a_payload_over_compute_seconds() -> None:
    values = {**SLEEPER, "model": "gpt-micro", "strategy": "parameter_server", "num_workers": 2, "num_servers": 1}
    config = RunConfig.model_validate({**values, "link": "server=1gbit,*=80mbit"})
    assert communication_compute_ratio(config) == pytest.approx(config.wire_bytes / 10e6 / 3)
    assert communication_compute_ratio(RunConfig.model_validate(values)) is None  # nobody knows the link
    silent = {"strategy": "ring_allreduce", "num_workers": 2, "link": "80mbit"}
    assert communication_compute_ratio(RunConfig.model_validate({**silent, "compute": "none"})) is None
    assert communication_compute_ratio(RunConfig.model_validate(silent)) is None
    assert set(scales(config)) == {"communication_compute_ratio"}


def test_every_preset_can_be_a_target() -> None:
    assert {parse_target(f"{name}, 1gbit, a100 at 40% MFU, 2 nodes").config.model for name in PRESETS} == set(PRESETS)
