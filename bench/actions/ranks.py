"""Commands that run in every rank, or measure on this machine: run, calibrate, tune, and those that launches start."""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
from functools import partial

from bench.actions import EXIT_FAILED
from bench.arguments import knobs
from bench.config import CLUSTER_VARIABLE, BadInput, make_config


def run(arguments: argparse.Namespace) -> int:
    """Run one training in every rank."""
    from bench import environment, inputs
    from bench.files import check_writable, open_folder
    from bench.mpi import RankInfo, complete_config
    from bench.records import PlannedRun

    rank_info = RankInfo.of_strategy(knobs(arguments).get("strategy"), os.environ)
    config = complete_config(knobs(arguments), rank_info, _node_links())
    if arguments.save_parameters and config.compute != "real":
        raise BadInput(f"--save-parameters: compute: {config.compute} trains nothing; use --compute real")
    if rank_info.rank == 0:
        environment.collect()  # now: a strategy sets its library's variables later
    from rich.console import Console

    from bench import outcome
    from bench.rank import trace
    from bench.rank.progress import RunProgress, on_terminal
    from bench.rank.run import Result, run_all, save_parameters, write_folder

    kept: list[Result] = []

    def check() -> None:
        if rank_info.rank == 0:
            reads = inputs.paths(config)
            for file in filter(None, (arguments.save_parameters, arguments.trace)):
                check_writable(file, reads)
                reads.append(file)
            if arguments.out:
                open_folder(arguments.out)

    def keep(result: Result) -> None:
        if arguments.out:
            write_folder(arguments.out, result)
        if arguments.save_parameters:
            save_parameters(arguments.save_parameters, result)
        kept.append(result)

    planned = PlannedRun(config=config)
    keep_trace = partial(trace.write, arguments.trace) if arguments.trace else None
    progress = RunProgress(config, Console(stderr=True, force_terminal=on_terminal(rank_info)))
    try:
        run_all([planned], rank_info, keep, keep_trace, None if rank_info.rank else progress.tell, check)
    finally:
        progress.close()
    for result in kept:
        print(outcome.describe(planned, result.record), flush=True)
    if all(result.record.status == "ok" or result.record.is_rejected for result in kept):
        return 0
    explain_traceback()
    return EXIT_FAILED


def calibrate(arguments: argparse.Namespace) -> int:
    """Measure what predictions need."""
    from bench import inputs
    from bench.files import check_writable, write_json
    from bench.mpi import ALONE, RankInfo, complete_config

    rank_info, links = RankInfo.detect(os.environ), _node_links() or {}
    config = complete_config(knobs(arguments), ALONE)
    from bench.rank.calibrate_all import calibrate_all, describe

    def check() -> None:
        if rank_info.rank == 0:
            check_writable(arguments.out, inputs.paths(config))

    found = calibrate_all(config, rank_info, str(links["link"]) if links else None, check)
    if found is not None:
        write_json(arguments.out, found.model_dump())
        print("\n".join([f"{arguments.out}:", *describe(found)]))
    return 0


def tune(arguments: argparse.Namespace) -> int:
    """Try sizes of the knob that a strategy's speed depends on."""
    from rich.console import Console

    from bench.mpi import RankInfo, complete_config
    from bench.sweep import tune

    rank_info = RankInfo.detect(os.environ)
    given = {"compute": "none", **knobs(arguments)}
    if rank_info.launcher == "none":
        config = make_config({**given, "num_workers": arguments.num_workers or 1}, "tune")
    elif arguments.num_workers:
        raise BadInput("tune: --num-workers is the launcher's number of ranks less the servers; leave it out")
    else:
        config = complete_config(given, rank_info, _node_links())
    # mpirun gives its ranks a terminal even if its own output goes to a file.
    console = Console(force_terminal=None if rank_info.launcher == "none" else False)
    tune.tune(config, rank_info, arguments.out, console)
    return 0


def ranks(arguments: argparse.Namespace) -> int:
    """Run the plan of a launch: what a sweep starts."""
    from bench import failures
    from bench.mpi import RankInfo
    from bench.records import PlannedRun

    rank_info = RankInfo.detect(os.environ)
    lines = arguments.plan.read_text(encoding="utf-8").splitlines()
    planned = [PlannedRun.model_validate_json(line) for line in lines]
    if planned[0].config.world_size != rank_info.world_size:
        raise BadInput(
            f"the launcher started {rank_info.world_size} ranks, the plan has {planned[0].config.world_size}: "
            f"a host file with more slots than ranks? horovodrun starts one on every slot"
        )
    faulthandler.register(signal.SIGTERM, chain=True)  # so that the log shows where each rank was
    failures.redirect(arguments.plan.parent, rank_info.rank)
    try:
        from bench.rank.run import run_all, write_folder

        run_all(planned, rank_info, lambda result: write_folder(arguments.out, result))
    except Exception as error:
        failures.keep(failures.Failure.of(error, rank_info.rank, planned[0].config.role(rank_info.rank)))
        raise
    return 0


def _node_links() -> dict[str, object] | None:
    """Return the link knobs of the emulated node that this process runs on, None if it runs on none."""
    name = os.environ.get(CLUSTER_VARIABLE)
    if name is None:
        return None
    from bench.nodes.layout import find

    nodes = find(name)
    return {"link": nodes.link, "delay": nodes.delay, "congestion_control": nodes.congestion_control}


def explain_traceback() -> None:
    """Say that horovodrun prints a traceback of its own after a rank that ends with a code other than 0."""
    if "HOROVOD_RANK" in os.environ:
        print("(the traceback that follows is horovodrun's own)", file=sys.stderr, flush=True)
