"""Commands that start ranks or prepare for them: sweep, status, scale-model, data, cluster, doctor."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from bench.actions import EXIT_FAILED
from bench.config import AgreedBadInput, BadInput, RunConfig
from bench.sweep.file import read_sweep


def sweep(arguments: argparse.Namespace) -> int:
    """Run or describe a sweep, or write it as a batch script."""
    refuse_ranks("sweep")
    where = str(arguments.file)
    keys = ("precision_target", "budget")
    given = {key: getattr(arguments, key) for key in keys if getattr(arguments, key) is not None}
    sweep = read_sweep(arguments.file, given)
    if not (arguments.dry_run or arguments.slurm):
        _enter_sandbox(sweep.runs(where))

    from rich.console import Console

    from bench.sweep.folder import read_records, with_probes
    from bench.sweep.plan import describe_plan, plan
    from bench.sweep.run import check_inputs, run_sweep

    if arguments.dry_run:
        check_inputs(sweep, where)
        found = read_records(arguments.out) if arguments.out else []
        sweep = with_probes(sweep, arguments.out) if arguments.out else sweep
        print("\n".join(describe_plan(plan(sweep, where), found, sweep)))
        return 0
    if arguments.out is None:
        raise BadInput("sweep: --out DIR is missing; give the results folder")
    if arguments.slurm:
        options = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
        return _write_batch_script(arguments, sweep.runs(where), options)
    records = run_sweep(sweep, where, arguments.out, Console())
    rejected = sum(record.is_rejected for record in records)
    if rejected:
        several = f"{rejected} runs were" if rejected > 1 else "1 run was"
        print(f"psring: {several} rejected, disturbed from outside: psring status {arguments.out}", file=sys.stderr)
    bad = [record for record in records if record.status not in ("ok", "unsupported") and not record.is_rejected]
    for record in bad:
        print(f"psring: {record.run_id} {record.status}: {record.reason}", file=sys.stderr)
    return EXIT_FAILED if bad else 0


def refuse_ranks(command: str) -> None:
    """Raise BadInput, printed by one rank, if a launcher started this; srun also starts the shell of a job."""
    from bench.mpi import RankInfo

    found = RankInfo.detect(os.environ)
    if found.launcher not in ("none", "srun"):
        raise AgreedBadInput(f"{command}: starts its ranks itself; run it once, without {found.launcher}")


def _enter_sandbox(cells: Sequence[RunConfig]) -> None:
    """Enter private namespaces if any cell has emulated nodes, before imports start threads: without root only then.

    Where that is impossible, run_sweep finds the same and records those cells as unsupported.
    """
    if any(cell.link for cell in cells):
        from bench.nodes import sandbox

        with suppress(BadInput):
            sandbox.enter()


def _write_batch_script(arguments: argparse.Namespace, cells: Sequence[RunConfig], options: Sequence[str]) -> int:
    from bench.files import check_writable, write_whole
    from bench.sweep.slurm import batch_script

    check_writable(arguments.slurm, [arguments.file])
    write_whole(arguments.slurm, batch_script(cells, arguments.file, arguments.out, options))
    print(f"submit it: sbatch {arguments.slurm}")
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Print how far a sweep is."""
    from bench.sweep.status import describe

    print("\n".join(describe(arguments.folder)))
    return 0


def scale_model(arguments: argparse.Namespace) -> int:
    """Print a sweep that scales a target down to this machine."""
    from bench.environment import cores
    from bench.scale_model import scale_model

    print(scale_model(arguments.target, cores()), end="")
    return 0


def data(arguments: argparse.Namespace) -> int:
    """Prepare data."""
    from bench.rank.data import prepare

    print(f"{arguments.out}: {prepare(arguments.text, arguments.out, arguments.dtype)} tokens")
    return 0


def cluster(arguments: argparse.Namespace) -> int:
    """Manage emulated nodes."""
    from bench.nodes import cluster, layout, node, sandbox

    words = getattr(arguments, "words", [])
    words = words[1:] if words[:1] == ["--"] else words
    if arguments.action == "up":
        keys = ("name", "num_nodes", "link", "num_servers", "delay", "congestion_control")
        made = layout.make(**{key: getattr(arguments, key) for key in keys})
        cluster.up(made)
        print(f"{made.name}: {made.nodes[0]} to {made.nodes[-1]} are up; psring cluster exec n0 -- COMMAND")
    elif arguments.action == "down":
        cluster.down(arguments.name)
    elif arguments.action == "status":
        print("\n".join(cluster.describe()))
    elif arguments.action == "exec":
        if not words:
            raise BadInput("cluster exec: no command; write psring cluster exec n0 -- COMMAND")
        node.execute(layout.find(arguments.name), arguments.node, words)
    elif arguments.action == "check":
        from bench.nodes import check

        sandbox.enter()
        check.print_capacity(check.parse_sizes(arguments.num_nodes), arguments.link.split(","))
    elif arguments.action == "shell":
        sandbox.enter()
        node.execute_here(words or [os.environ.get("SHELL", "/bin/sh")], os.environ)
    else:
        node.remote_shell(words)
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """Print what this machine can run."""
    from bench.doctor import print_findings

    return print_findings()
