"""The psring command. Each subcommand's work, and its imports, are elsewhere."""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn, get_args, get_origin

from bench.config import (
    CLUSTER_VARIABLE,
    AgreedBadInput,
    BadInput,
    DiskFull,
    RunConfig,
    make_config,
    nearest,
    read_sweep,
)

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130
OTHERS_WAIT_S = 3.0
RUN_FLAGS = {name: "--" + name.replace("_", "-") for name in RunConfig.model_fields if name != "num_workers"}


class Parser(argparse.ArgumentParser):
    """argparse that complains in one line, through BadInput, and knows the nearest right flag."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage and exiting."""
        raise BadInput(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one psring command and return its exit code."""
    try:
        arguments = parse(sys.argv[1:] if argv is None else list(argv))
        code: int = arguments.act(arguments)
        return code
    except BadInput as error:
        _say_once(error)
        return EXIT_BAD_INPUT
    except DiskFull as error:
        print(f"psring: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("psring: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _say_once(error: BadInput) -> None:
    """Print the reason from one rank: the others speak only if nobody has ended the run meanwhile."""
    from bench.launch import Placement

    if Placement.detect(os.environ).rank > 0:
        if isinstance(error, AgreedBadInput):
            return
        time.sleep(OTHERS_WAIT_S)
    print(f"psring: {error}", file=sys.stderr, flush=True)


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse a command line; BadInput for anything that is not understood."""
    parser, flags = build_parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        known = flags.get(arguments.command, [])
        raise BadInput(f"unknown argument {unknown[0]!r}{nearest(unknown[0], known)}; see psring --help")
    return arguments


def build_parser() -> tuple[Parser, dict[str, list[str]]]:
    """Return the parser and each command's flags."""
    parser = Parser(prog="psring", description="Parameter server or ring-allreduce? Measure both on the same GPT.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, act: object, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(act=act)
        return command

    run = add("run", _run, "one run; under mpirun or horovodrun, every rank calls this")
    _add_knobs(run)
    run.add_argument("--out", type=Path, metavar="DIR", help="new folder for the record and the raw samples")
    text = "write what all ranks did in the last step as a Chrome trace (chrome://tracing, ui.perfetto.dev)"
    run.add_argument("--trace", type=Path, metavar="FILE.json", help=text)
    run.add_argument("--save-parameters", type=Path, metavar="FILE", help="write rank 0's final weights (torch.save)")

    sweep = add("sweep", _sweep, "the whole grid of a sweep file; resumes what is missing")
    sweep.add_argument("file", type=Path, metavar="SWEEP.yaml")
    sweep.add_argument("--out", type=Path, metavar="DIR", help="results folder, new or to be resumed")
    sweep.add_argument("--dry-run", action="store_true", help="print the plan and run nothing")
    text = "launch again until the half width of tokens_per_s's 95%% interval is this share of its median (0.05)"
    sweep.add_argument("--precision-target", metavar="SHARE", help=text)
    text = "begin no run after this time: 90s, 30min or 2h; the same command goes on from there"
    sweep.add_argument("--budget", metavar="TIME", help=text)
    text = "write a batch script that runs it inside one Slurm allocation, and run nothing"
    sweep.add_argument("--slurm", type=Path, metavar="FILE.sbatch", help=text)

    status = add("status", _status, "how far a sweep is, from another terminal; reads its folder only")
    status.add_argument("folder", type=Path, metavar="DIR")

    report = add("report", _report, "tables, figures, report.html and report.md of a results folder")
    report.add_argument("folder", type=Path, metavar="DIR")
    text = "also write every run's raw samples as event files (pip install 'psring[tensorboard]')"
    report.add_argument("--tensorboard", action="store_true", help=text)
    report.add_argument("--allow-mixed", action="store_true", help="join runs of different hosts, versions or commits")

    calibrate = add(
        "calibrate", _calibrate, "time every layer of one worker, for --compute emulated --compute-from FILE"
    )
    _add_knobs(calibrate)
    calibrate.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    text = "two folders, or two strategies of one, cell by cell: B against A, with intervals"
    _add_comparison(add("compare", _compare, text))

    scale = add(
        "scale-model", _scale_model, "print a sweep file that models a larger cluster on this machine's emulated nodes"
    )
    scale.add_argument("--target", required=True, metavar="TEXT", help="gpt2, 25gbit, a100 at 40%% MFU, 8 nodes")

    ranks = commands.add_parser("ranks")  # no help: `psring sweep` starts it, on every rank of a launch
    ranks.set_defaults(act=_ranks)
    ranks.add_argument("plan", type=Path)
    ranks.add_argument("--out", type=Path, required=True)

    data = add("data", _data, "prepare tokens for --data")
    data.add_argument("what", choices=["prepare"])
    data.add_argument("text", type=Path, metavar="TEXT", help="any file; its bytes become tokens")
    data.add_argument("--out", type=Path, required=True, metavar="FILE.bin")

    text = "nodes and shaped links inside this machine (network namespaces; needs root)"
    _add_cluster_actions(add("cluster", _cluster, text))
    tune = add("tune", _tune, "find the fastest message size on this network, for --tuned; under mpirun as run is")
    _add_knobs(tune)
    tune.add_argument("--num-workers", metavar="VALUE", help="without mpirun: start the ranks for so many workers")
    tune.add_argument("--out", type=Path, required=True, metavar="FILE.yaml", help="file that --tuned reads")
    add("doctor", _doctor, "what this machine can run, what is missing, and what mends it")
    flags = {
        name: [flag for action in command._actions for flag in action.option_strings]
        for name, command in commands.choices.items()
    }
    return parser, flags


def _add_knobs(command: argparse.ArgumentParser) -> None:
    """Every knob of RunConfig, its docstring as help."""
    for name, flag in RUN_FLAGS.items():
        field = RunConfig.model_fields[name]
        default = "" if field.default is None else f" [{field.default}]"
        text = (field.description or "").replace("%", "%%") + default
        if isinstance(field.default, bool):
            command.add_argument(flag, action="store_true", default=None, help=text)
        else:
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            command.add_argument(flag, metavar="|".join(choices) or "VALUE", help=text)


def _knobs(arguments: argparse.Namespace) -> dict[str, object]:
    """The knobs that were given."""
    return {name: getattr(arguments, name) for name in RUN_FLAGS if getattr(arguments, name) is not None}


def _add_comparison(compare: argparse.ArgumentParser) -> None:
    compare.add_argument("a", metavar="A", help="results folder; with --within, a strategy")
    compare.add_argument("b", metavar="B", help="results folder; with --within, a strategy")
    compare.add_argument("--within", type=Path, metavar="DIR", help="results folder whose strategies A and B are")
    text = "exit with 1 if B is surely slower than A by more than this share in any cell, or lost its numbers"
    compare.add_argument("--fail-if-slower", metavar="SHARE", help=f"{text}; 5%% or 0.05")


def _add_cluster_actions(cluster: argparse.ArgumentParser) -> None:
    actions = cluster.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        action.add_argument("--name", default="psring", help="which cluster; several may be up at once [psring]")
        return action

    up = add("up", "bring it up")
    up.add_argument("--num-nodes", type=int, required=True, metavar="N")
    up.add_argument("--link", required=True, metavar="RATE", help="200mbit, or per node: n0=1gbit,*=50mbit")
    up.add_argument("--num-servers", type=int, default=0, metavar="S", help="last nodes that server=RATE means [0]")
    up.add_argument("--delay", metavar="TIME", help="one way, on every link: 2ms (needs the kernel's netem)")
    up.add_argument("--congestion-control", default="reno", metavar="reno|cubic", help="of the nodes' TCP [reno]")
    add("down", "end what runs on it and remove it")
    actions.add_parser("status", help="list the clusters that are up, and what their links carried")
    execute = add("exec", "run a command on a node: exec NODE -- COMMAND")
    execute.add_argument("node", metavar="NODE")
    execute.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    shell = actions.add_parser("shell", help="a shell in which you may make clusters without root; they end with it")
    shell.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    check = actions.add_parser("check", help="prove which sizes and rates this machine can emulate (about a minute)")
    check.add_argument("--num-nodes", default="2,4,8,16", metavar="N,N", help="sizes to try [2,4,8,16]")
    check.add_argument("--link", default="100mbit,200mbit,500mbit,1gbit,2gbit", metavar="RATE,RATE")
    agent = actions.add_parser("agent", help="stands in for ssh on the nodes")
    agent.add_argument("words", nargs=argparse.REMAINDER)


def _run(arguments: argparse.Namespace) -> int:
    from bench.launch import Placement, complete_config
    from bench.records import PlannedRun, check_writable, open_folder

    placement = Placement.detect(os.environ)
    config = complete_config(_knobs(arguments), placement, _links_here())
    if arguments.save_parameters and config.compute != "real":
        raise BadInput(f"--save-parameters: compute: {config.compute} trains nothing; use --compute real")
    if placement.rank == 0:
        for file in filter(None, (arguments.save_parameters, arguments.trace)):
            check_writable(file)
        if arguments.out:
            open_folder(arguments.out)
    from bench import trace, worker

    kept: list[worker.Result] = []

    def keep(result: worker.Result) -> None:
        if arguments.out:
            worker.write_folder(arguments.out, result)
        if arguments.save_parameters:
            worker.save_parameters(arguments.save_parameters, result)
        kept.append(result)

    planned = PlannedRun(config=config)
    worker.run([planned], placement, keep, partial(trace.write, arguments.trace) if arguments.trace else None)
    for result in kept:
        print(f"{planned.describe()}: {result.record.describe()}", flush=True)
    return EXIT_FAILED if any(result.record.status != "ok" for result in kept) else 0


def _links_here() -> dict[str, object] | None:
    """The knobs of the emulated node this process runs on, if it does."""
    name = os.environ.get(CLUSTER_VARIABLE)
    if name is None:
        return None
    from bench.emulate.layout import find

    nodes = find(name)
    return {"link": nodes.link, "delay": nodes.delay, "congestion_control": nodes.congestion_control}


def _calibrate(arguments: argparse.Namespace) -> int:
    from bench.launch import Placement, complete_config
    from bench.records import check_writable, write_json

    placement = Placement.detect(os.environ)
    config = complete_config(_knobs(arguments), placement)
    check_writable(arguments.out)
    from bench.emulate.calibrate import calibrate

    found = calibrate(config, placement)
    write_json(arguments.out, found.model_dump())
    forward_s, backward_s = sum(found.forward_s.values()), sum(found.backward_s.values())
    print(f"{arguments.out}: a step of forward {forward_s:.3g} s, backward {backward_s:.3g} s, on {found.measured_on}")
    return 0


def _scale_model(arguments: argparse.Namespace) -> int:
    from bench.emulate.similitude import scale_model
    from bench.environment import cores

    print(scale_model(arguments.target, cores()), end="")
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from bench import tune
    from bench.launch import Placement, complete_config

    placement = Placement.detect(os.environ)
    given = {"compute": "none", **_knobs(arguments)}
    if placement.launcher == "none":
        config = make_config({**given, "num_workers": arguments.num_workers or 1}, "tune")
    elif arguments.num_workers:
        raise BadInput("tune: --num-workers is the launcher's world less the servers; leave it out")
    else:
        config = complete_config(given, placement, _links_here())
    tune.tune(config, placement, arguments.out, Console())
    return 0


def _ranks(arguments: argparse.Namespace) -> int:
    from bench import worker
    from bench.launch import Placement
    from bench.records import PlannedRun

    lines = arguments.plan.read_text().splitlines()
    planned = [PlannedRun.model_validate_json(line) for line in lines]
    faulthandler.register(signal.SIGTERM, chain=True)  # whatever ends the launch, its log says where this rank was
    worker.run(planned, Placement.detect(os.environ), lambda result: worker.write_folder(arguments.out, result))
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from bench.folder import existing
    from bench.sweep import describe_plan, plan, run_sweep

    where = str(arguments.file)
    keys = ("precision_target", "budget")
    given = {key: getattr(arguments, key) for key in keys if getattr(arguments, key) is not None}
    sweep = read_sweep(arguments.file, given)
    if arguments.dry_run:
        found = existing(arguments.out) if arguments.out else []
        print("\n".join(describe_plan(plan(sweep, where), found)))
        return 0
    if arguments.out is None:
        raise BadInput("sweep: --out DIR is missing; give the results folder")
    if arguments.slurm:
        options = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
        return _write_batch_script(arguments, sweep.runs(where), options)
    records = run_sweep(sweep, where, arguments.out, Console())
    bad = [record for record in records if record.status not in ("ok", "unsupported")]
    for record in bad:
        print(f"psring: {record.run_id} {record.status}: {record.reason}", file=sys.stderr)
    return EXIT_FAILED if bad else 0


def _write_batch_script(arguments: argparse.Namespace, cells: Sequence[RunConfig], options: Sequence[str]) -> int:
    from bench.records import check_writable, write_whole
    from bench.slurm import batch_script

    check_writable(arguments.slurm)
    write_whole(arguments.slurm, batch_script(cells, arguments.file, arguments.out, options))
    print(f"submit it: sbatch {arguments.slurm}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from bench.status import describe

    print("\n".join(describe(arguments.folder)))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from bench.report import write_report

    written = write_report(arguments.folder, allow_mixed=arguments.allow_mixed)
    if arguments.tensorboard:
        from bench.events import write_events

        written += write_events(arguments.folder)
    for path in written:
        print(path)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from bench import compare

    share = None if arguments.fail_if_slower is None else compare.share_of(arguments.fail_if_slower)
    found = compare.compare(arguments.a, arguments.b, arguments.within)
    print(compare.as_text(found, arguments.a, arguments.b))
    slower = found.iloc[:0] if share is None else compare.slower_than(found, share)
    if len(slower):
        cells = f"{len(slower)} of {len(found)} cells"
        print(f"psring: B is slower by more than {arguments.fail_if_slower}, or lost, in {cells}", file=sys.stderr)
    return EXIT_FAILED if len(slower) else 0


def _data(arguments: argparse.Namespace) -> int:
    from bench.data import prepare

    print(f"{arguments.out}: {prepare(arguments.text, arguments.out)} tokens")
    return 0


def _cluster(arguments: argparse.Namespace) -> int:
    from bench.emulate import cluster, layout, node, sandbox

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
        from bench.emulate import check

        sandbox.enter()
        check.show(check.read_sizes(arguments.num_nodes), arguments.link.split(","))
    elif arguments.action == "shell":
        sandbox.enter()
        node.replace(words or [os.environ.get("SHELL", "/bin/sh")], os.environ)
    else:
        node.remote_shell(words)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from bench.doctor import report

    return report()


if __name__ == "__main__":
    sys.exit(main())
