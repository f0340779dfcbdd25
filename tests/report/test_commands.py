"""Every printed command is one that psring understands, and it runs the cell that it stands beside."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import arguments, records
from bench.config import RunConfig
from bench.mpi import RankInfo, complete_config
from bench.nodes import layout
from bench.nodes.cluster import has_privileges
from bench.report import cells
from bench.report.commands import command, commands
from tests.support.processes import PSRING, make_environ
from tests.support.synthetic import demo_records, make_failure, make_record

SERVED: dict[str, Any] = {"strategy": "parameter_server", "num_servers": 2}
ASLEEP: dict[str, Any] = {"compute": "emulated", "emulated_forward_s": 0.01, "emulated_backward_s": 0.02}
NODES: dict[str, Any] = {"link": "n0=1gbit,server=500mbit,*=50mbit", "delay": "2ms", "congestion_control": "cubic"}
CELLS: list[dict[str, Any]] = [
    {},
    {"data": "my data/$HOME.bin", "shared_memory": False, "window_bytes": None, "learning_rate": 3e-4},
    {"strategy": "ddp", "num_workers": 3, "hostfile": "hosts", "network_interface": "eth1"},
    {**SERVED, "num_workers": 2, "clip_norm": 0.5, "model": "gpt-micro", "n_layer": 1},
    {**SERVED, "num_workers": 4, "launcher": "srun", "network_interface": "eth1"},
    {"strategy": "ring_allreduce", "num_workers": 4, "launcher": "horovodrun"},
    {"strategy": "ring_allreduce", "num_workers": 4, "launcher": "horovodrun", "hostfile": "h", "link": None},
    {"strategy": "mpi_ring", "num_workers": 2, "launcher": "srun"},
    {"link": "200mbit", **ASLEEP},
    {**SERVED, **NODES, **ASLEEP, "num_workers": 3, "speed_factor": "0=2,*=0.8"},
    {"strategy": "ring_allreduce", "num_workers": 3, "launcher": "horovodrun", "link": "200mbit"},
]
RANKS = {"mpirun": "-n", "horovodrun": "-np", "srun": "--ntasks"}


def understand(text: str) -> RunConfig:
    """The config that `psring run` would build on the ranks of a printed command."""
    words = shlex.split(text)
    links = None
    if words[:3] == ["psring", "cluster", "up"]:
        end = words.index("&&")
        up = arguments.parse(words[1:end])
        keys = ("name", "num_nodes", "link", "num_servers", "delay", "congestion_control")
        nodes = layout.make(**{key: getattr(up, key) for key in keys})
        links = {"link": nodes.link, "delay": nodes.delay, "congestion_control": nodes.congestion_control}
        stop = next(place for place, word in enumerate(words) if word.endswith(";"))
        assert (words[end + 1], *words[stop + 1 :]) == ("{", "psring", "cluster", "down;", "}")
        execute = arguments.parse([*words[end + 3 : stop], words[stop].removesuffix(";")])
        assert (execute.action, execute.node) == ("exec", "n0")
        words = [word for word in execute.words if word != "--"]
    start = words.index("psring")
    launcher = words[0] if start else "none"
    ranks = int(words[words.index(RANKS[launcher]) + 1]) if start else 1
    assert words[start + 1] == "run"
    given = arguments.knobs(arguments.parse(words[start + 1 :]))
    config = complete_config(given, RankInfo(launcher, 0, ranks, 0), links)
    if links:
        assert (nodes.num_servers, len(nodes.nodes)) == (config.num_servers, config.world_size)
    return config


@pytest.mark.parametrize("values", CELLS, ids=str)
def test_a_command_rebuilds_its_cell(values: dict[str, Any]) -> None:
    config = RunConfig(**values)
    assert understand(command(config)) == config


def test_every_cell_that_a_library_can_run_has_its_command() -> None:
    runs = demo_records(repeats=1)
    table = commands(cells.summarize(records.frame(runs)), {run.cell: run.config for run in runs})
    possible = {run.config for run in runs if run.config.unsupported() is None}
    assert {understand(row[-1]) for row in table.rows} == possible
    assert len(table.rows) == len(possible)


def test_a_cell_that_no_library_can_run_has_no_command() -> None:
    runs = [make_record(), make_failure("unsupported", "no bf16", strategy="ring_allreduce", wire_dtype="bf16")]
    table = commands(cells.summarize(records.frame(runs)), {run.cell: run.config for run in runs})
    assert [row[-1] for row in table.rows] == ["psring run --launcher mpirun"]


@pytest.mark.launcher
@pytest.mark.parametrize(
    "values", [{"strategy": "mpi_ring"}, {**SERVED, "num_servers": 1, "link": "200mbit"}], ids=["mpirun", "emulated"]
)
def test_a_printed_command_runs_in_a_shell(tmp_path: Path, values: dict[str, Any]) -> None:
    if "link" in values and not has_privileges():
        pytest.skip("emulated nodes need root")
    short = {"steps": 2, "warmup_steps": 1, "batch_size": 1, "block_size": 16, "patience_s": 0}
    config = RunConfig(**values, **short, num_workers=2)
    program = tmp_path / "bin" / "psring"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(PSRING)} "$@"\n')
    program.chmod(0o755)
    text = command(config).replace("psring run", f"psring run --out {tmp_path / 'out'}", 1)
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    ended = subprocess.run(
        ["sh", "-c", text], cwd=root, capture_output=True, text=True, timeout=200, check=False,
        env=make_environ(PATH=path, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1"),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (record,) = records.read(tmp_path / "out")
    assert record.config == config
    assert record.status in ("ok", "invalid")  # a busy machine may fail the guard of emulated nodes
