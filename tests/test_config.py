"""Laws of the config: one spelling, validated, frozen, rebuilt equal on every rank."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import given
from hypothesis import strategies as st

from bench.arguments import RUN_FLAGS, parse
from bench.config import GROUPS, BadInput, RunConfig, make_config, read_knobs
from bench.mpi import RankInfo, complete_config
from bench.sweep.file import Sweep, cross_product, read_sweep
from bench.sweep.launch import run_flags

REPOSITORY = Path(__file__).parent.parent

configs = st.builds(
    RunConfig,
    strategy=st.just("parameter_server"),
    num_workers=st.integers(1, 600),
    num_servers=st.integers(1, 9),
    batch_size=st.integers(1, 64),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
    learning_rate=st.floats(1e-6, 1.0),
    clip_norm=st.none() | st.floats(1e-3, 10.0),
    n_layer=st.none() | st.integers(1, 4),
    window_bytes=st.none() | st.integers(1, 1 << 20),
    check_equivalence=st.booleans(),
)


def rebuilt(config: RunConfig) -> RunConfig:
    """What a rank makes of the flags that the launcher gave it."""
    arguments = parse(["run", *run_flags(config)])
    given = {name: getattr(arguments, name) for name in RUN_FLAGS if getattr(arguments, name) is not None}
    return complete_config(given, RankInfo(config.launcher, 0, config.world_size, 0))


@given(configs)
def test_every_rank_rebuilds_an_equal_config_from_its_flags(config: RunConfig) -> None:
    assert rebuilt(config) == config


@given(configs)
def test_json_round_trip_keeps_the_identity(config: RunConfig) -> None:
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.digest() == config.digest()


@pytest.mark.parametrize(
    ("values", "digest"),
    [
        ({}, "fde6c0034972"),
        ({"strategy": "parameter_server", "num_servers": 1, "num_workers": 2}, "ac5bdbe29556"),
        ({"strategy": "ring_allreduce", "num_workers": 4, "precision": "fp16", "wire_dtype": "fp16", "clip_norm": 1.0},
         "e0abda942461"),
        ({"strategy": "parameter_server", "num_workers": 4, "num_servers": 2, "consistency": "ssp", "staleness": 3,
          "link": "200mbit", "window_bytes": None, "compute": "emulated", "device_model": "a100", "device_mfu": 0.4},
         "46cb8af71276"),
    ],
)  # fmt: skip
def test_a_cell_keeps_the_name_that_committed_folders_have_for_it(values: dict[str, object], digest: str) -> None:
    assert RunConfig.model_validate(values).digest() == digest


def test_the_groups_hold_every_knob_once() -> None:
    names = [name for classes in GROUPS.values() for each in classes for name in each.__annotations__]
    assert sorted(names) == sorted(RunConfig.model_fields)


@pytest.mark.parametrize("name", RunConfig.model_fields)
def test_every_knob_has_a_docstring(name: str) -> None:
    assert RunConfig.model_fields[name].description


def numbers(name: str) -> set[object]:
    annotation = RunConfig.model_fields[name].annotation
    return {int, float} & {annotation, *get_args(annotation)}


NUMBERS = [name for name in RunConfig.model_fields if numbers(name)]
TEXTS = [name for name, field in RunConfig.model_fields.items() if field.annotation in (str, str | None)]


def test_every_number_has_a_lower_and_an_upper_bound() -> None:
    for name in NUMBERS:
        kinds = {type(bound) for bound in RunConfig.model_fields[name].metadata}
        assert kinds & {Ge, Gt}, name
        assert kinds & {Le, Lt}, name


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (NUMBERS, ["inf", "nan", math.inf, math.nan, 10**41, "1e300", True, "010", "1:30", "yes", -1e300]),
        (TEXTS, ["a\0b", "a\nb", "q\udcff.bin", "x" * 5000, "\x1b[31m"]),
    ],
)
def test_no_knob_takes_what_its_kind_is_not(names: list[str], values: list[object]) -> None:
    for name, value in product(names, values):
        with pytest.raises(BadInput, match=f"^here: {name}: ") as refusal:
            make_config({name: value}, "here")
        assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [("learning_rate", "1e-4", 1e-4), ("steps", 1000.0, 1000), ("window_bytes", "none", None), ("batch_size", "16", 16),
     ("check_equivalence", "yes", True), ("data", "yes", "yes"), ("data", "010", "010"), ("momentum", "0.5", 0.5)],
)  # fmt: skip
def test_what_a_value_says_is_read(name: str, value: object, read: object) -> None:
    assert getattr(read_knobs({name: value}, "here"), name) == read


@pytest.mark.parametrize("path", sorted((REPOSITORY / "bench/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_is_valid_and_says_what_it_holds_equal(path: Path) -> None:
    assert read_sweep(path).runs(str(path))
    opening = path.read_text().split("\n\n")[0] + path.read_text().split("defaults")[0]
    assert "equal" in opening
    assert "nfair" in opening


def test_cross_product_varies_the_last_key_fastest() -> None:
    assert cross_product({"a": [1, 2], "b": 3, "c": [4, 5]}) == [
        {"a": 1, "b": 3, "c": 4}, {"a": 1, "b": 3, "c": 5}, {"a": 2, "b": 3, "c": 4}, {"a": 2, "b": 3, "c": 5},
    ]  # fmt: skip


def test_a_sweep_keeps_each_cell_once_and_leaves_out_the_excluded() -> None:
    sweep = Sweep.model_validate(
        {
            "defaults": {"strategy": "ring_allreduce"},
            "grid": [{"num_workers": [1, 2, 4], "batch_size": [4, 8]}, {"num_workers": 2, "batch_size": 4}],
            "exclude": [{"num_workers": 4, "batch_size": 8}],
        }
    )
    cells = [(run.num_workers, run.batch_size) for run in sweep.runs("test")]
    assert cells == [(1, 4), (1, 8), (2, 4), (2, 8), (4, 4)]


@pytest.mark.parametrize(
    "rule",
    [
        {"learning_rate": "1e-2"},  # as PyYAML reads 1e-2
        {"learning_rate": 0.01, "optimizer": "adamw"},  # a default that the grid does not name
        {"learning_rate": 0.01, "strategy": "parameter_server", "num_servers": 1},  # a default of the strategy
    ],
)
def test_an_exclusion_compares_values_as_they_are_read(rule: dict[str, object]) -> None:
    grid = [{"strategy": "parameter_server", "learning_rate": [0.001, 0.01]}]
    (cell,) = Sweep.model_validate({"grid": grid, "exclude": [rule]}).runs("test")
    assert cell.learning_rate == 0.001


def test_an_excluded_cell_need_not_be_possible() -> None:
    block = {"strategy": "local", "num_workers": [1, 2]}
    assert len(Sweep.model_validate({"grid": [block], "exclude": [{"num_workers": 2}]}).runs("test")) == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"batchsize": 4}, "did you mean 'batch_size'"),
        ({"strategy": "ring_alreduce"}, "no strategy is called 'ring_alreduce'; did you mean 'ring_allreduce'?"),
        ({"strategy": "parameter_server", "num_servers": 0}, "at least 1 server"),
        ({"strategy": "ring_allreduce", "num_servers": 1}, "has no servers"),
        ({"strategy": "local", "num_workers": 2}, "local is one worker"),
        ({"batch_size": 5, "gradient_accumulation": 2}, "5 does not divide"),
        ({"n_embd": 10, "n_head": 3}, "does not divide into n_head: 3"),
        ({"batch_size": 0}, "greater than or equal to 1, not 0"),
        ({"steps": "many"}, "steps: input should be a valid integer"),
        ({"strategy": "parameter_server", "num_servers": 1, "launcher": "horovodrun"}, "use launcher: mpirun"),
        ({"strategy": "ddp", "num_workers": 2, "launcher": "none"}, "2 ranks need one"),
        ({"strategy": "fsdp", "num_workers": 2, "num_servers": 1}, "num_servers: fsdp has no servers"),
        ({"strategy": "zero", "num_workers": 2, "num_servers": 1}, "num_servers: zero has no servers"),
        ({"strategy": "fsdp", "num_workers": 2, "compression": "int8"}, "compression: needs a parameter_server"),
        ({"strategy": "zero", "num_workers": 2, "consistency": "asp"}, "consistency: asp needs a parameter_server"),
    ],
)
def test_a_bad_value_is_named_in_one_line(values: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput) as refusal:
        make_config(values, "here")
    assert str(refusal.value).startswith("here: ")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such sweep file"),
        ("a: [", "not YAML"),
        ("- 1", "a mapping"),
        ("{}", "grid: field required"),
        ("{grid: [{strategy: local}], repeat: 3}", "did you mean 'repeats'"),
        (
            "{grid: [{strategy: local, bach_size: 3}]}",
            "grid block 1: unknown key 'bach_size'; did you mean 'batch_size'",
        ),
        ("{grid: [{strategy: local}], exclude: [{bach_size: 3}]}", "exclude rule 1: unknown key 'bach_size'"),
        ("{grid: [{strategy: local}], exclude: [{strategy: local}]}", "leaves no cell"),
        ("{grid: [], repeats: 1}", "at least 1 item"),
        ("{grid: [{strategy: ddp, num_workers: []}]}", "grid block 1: 'num_workers': the list is empty"),
        ("{grid: [{strategy: local}], repeats: true}", "repeats: true is neither"),
        ("{grid: [{strategy: local}], repeats: 10000000}", "repeats: input should be less than or equal to"),
        ("{grid: [{seed: [1, 2, 3]}], repeats: 50000}", "150000 runs are too many"),
        (
            "{grid: [{seed: &a [1,2,3,4,5,6,7,8,9,10], steps: *a, n_layer: *a, batch_size: *a, n_embd: *a}]}",
            "100000 cells are too many",
        ),
        ("{grid: [{strategy: local}], budget: 99999999h}", "not a time above zero"),
        (
            "{grid: [{strategy: local}], cluster: {num_nodes: 999, link: 1gbit}}",
            "cluster.num_nodes: input should be less",
        ),
        ("{grid: [{batch_size: [4, 8]}], exclude: [{batch_size: 16}]}", "no cell of the grid has batch_size: 16"),
        ("{grid: [{batch_size: [4, 8]}], exclude: [{batch_size: [4]}]}", "write one rule for each value"),
        (
            "{grid: [{batch_size: [4, 8]}], exclude: [{batch_size: four}]}",
            "exclude rule 1: batch_size: input should be",
        ),
        ("{grid: [{batch_size: [4, 8]}], exclude: [{strategy: locl}]}", "no strategy is called 'locl'"),
        ("{grid: [{batch_size: [4, 8]}], exclude: [{}]}", "exclude rule 1: names no knob"),
    ],
)
def test_a_bad_sweep_file_is_refused_in_one_line(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "sweep.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BadInput) as refusal:
        read_sweep(path).runs(str(path))
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_float_that_yaml_reads_as_text_is_a_float() -> None:
    (learning_rate,) = yaml.safe_load("[3e-4]")
    assert isinstance(learning_rate, str)
    assert make_config({"learning_rate": learning_rate}, "here").learning_rate == 3e-4


def test_more_servers_than_ranks_leave_no_worker() -> None:
    with pytest.raises(BadInput, match="leave no worker"):
        complete_config({"strategy": "parameter_server", "num_servers": "2"}, RankInfo("mpirun", 0, 2, 0))


def test_dedicated_servers_are_one_by_default() -> None:
    assert RunConfig(strategy="parameter_server") == RunConfig(strategy="parameter_server", num_servers=1)
    assert RunConfig(strategy="parameter_server", placement="colocated").num_servers == 0
    assert RunConfig(strategy="ring_allreduce").num_servers == 0
    assert complete_config({"strategy": "parameter_server"}, RankInfo("mpirun", 0, 3, 0)).num_workers == 2


def test_what_horovod_cannot_reduce_is_refused_with_the_reason() -> None:
    config = RunConfig(strategy="ring_allreduce", wire_dtype="bf16")
    assert "bf16" in str(config.unsupported())
    assert RunConfig(strategy="parameter_server", num_servers=1, wire_dtype="bf16").unsupported() is None
