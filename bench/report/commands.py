"""One shell command per cell that runs it again without the sweep."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

import pandas as pd

from bench.config import RunConfig
from bench.config.network import DEFAULT_CONGESTION_CONTROL
from bench.nodes.layout import INTERFACE, hostfile
from bench.report.tables import Columns, Table, cell_names, table
from bench.sweep.launch import launcher_flags, run_flags

CLUSTER = "psring"  # the default name of `psring cluster`
NO_LINK = {"link": None, "delay": None, "congestion_control": DEFAULT_CONGESTION_CONTROL}


def commands(summary: pd.DataFrame, configs: Mapping[str, RunConfig]) -> Table:
    """A row per cell that some library can run, with its command; `configs` is by cell."""
    rows = summary[[configs[cell].unsupported() is None for cell in summary["cell"]]].to_dict("records")
    columns: Columns = {"command": lambda row: command(configs[row["cell"]])}
    return table(rows, "One command per cell", columns, cell_names(summary))


def command(config: RunConfig) -> str:
    """A shell command that runs this config once, with the launcher flags of a sweep under Open MPI.

    Emulated nodes are brought up before and removed after; that needs root or `psring cluster shell`.
    """
    if config.link is None:
        return launched(config)
    up = ["--num-nodes", str(config.world_size), "--link", config.link]
    up += ["--num-servers", str(config.num_servers)] if config.num_servers else []
    up += ["--delay", config.delay] if config.delay else []
    up += ["--congestion-control", config.congestion_control] if config.given(["congestion_control"]) else []
    on_nodes = config.model_copy(update=NO_LINK)
    hosts = on_nodes.model_copy(update={"hostfile": str(hostfile(CLUSTER)), "network_interface": INTERFACE})
    run = launched(on_nodes, hosts)
    return f"psring cluster up {shlex.join(up)} && {{ psring cluster exec n0 -- {run}; psring cluster down; }}"


def launched(config: RunConfig, hosts: RunConfig | None = None) -> str:
    """The launcher, its flags for `hosts` (by default the config's own), and `psring run` with the config's flags."""
    run = ["psring", "run", *run_flags(config)]
    if config.world_size == 1:  # not launched; the sweep's launcher is given so that it is the same cell
        return shlex.join([*run, "--launcher", config.launcher])
    return shlex.join([config.launcher, *launcher_flags(hosts or config, open_mpi=True), *run])
