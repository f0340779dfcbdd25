"""The command line of psring: every subcommand and its flags, with the knobs of RunConfig."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NoReturn, TypeVar, get_args, get_origin

from bench.config import GROUPS, BadInput, RunConfig, nearest, shorten
from bench.config.network import DEFAULT_CONGESTION_CONTROL
from bench.config.training import MAX_SEED, TOKEN_DTYPES
from strategies.options import MAX_COUNT, MAX_FACTOR

RUN_FLAGS = {name: "--" + name.replace("_", "-") for name in RunConfig.model_fields if name != "num_workers"}
Add = Callable[[str, str], argparse.ArgumentParser]


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises BadInput, one line, instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise BadInput instead of exiting."""
        raise BadInput(f"{message}; see {self.prog} --help")


class _Version(argparse.Action):
    """Prints psring's version and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"psring {version('psring')}")
        parser.exit()


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
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    _add_measuring(add)
    _add_reading(add)
    _add_predicting(add)
    _add_preparing(add)
    _add_edge(add)
    _add_cluster_actions(add("cluster", "nodes and shaped links inside this machine (network namespaces)"))
    ranks = commands.add_parser("ranks")  # internal: `psring sweep` starts it on every rank of a launch
    ranks.add_argument("plan", type=_path)
    ranks.add_argument("--out", type=_path, required=True)
    template = commands.add_parser("template")  # internal: the process that launches ranks starts it
    template.add_argument("listener", type=int)
    template.add_argument("room", nargs="*")
    flags = {
        name: [flag for action in command._actions for flag in action.option_strings]
        for name, command in commands.choices.items()
    }
    return parser, flags


def _add_measuring(add: Add) -> None:
    """Add run, sweep and tune."""
    run = add("run", "one run; under mpirun or horovodrun, every rank calls this")
    _add_knobs(run)
    run.add_argument("--out", type=_path, metavar="DIR", help="new folder for the record and the raw samples")
    text = "write the last step of all ranks, servers too, as a Chrome trace (ui.perfetto.dev); slows Horovod a little"
    run.add_argument("--trace", type=_path, metavar="FILE.json", help=text)
    run.add_argument("--save-parameters", type=_path, metavar="FILE", help="write rank 0's final weights (torch.save)")

    sweep = add("sweep", "the whole grid of a sweep file; resumes what is missing")
    sweep.add_argument("file", type=_path, metavar="SWEEP.yaml")
    sweep.add_argument("--out", type=_path, metavar="DIR", help="results folder, new or to be resumed")
    sweep.add_argument("--dry-run", action="store_true", help="print the plan and run nothing")
    text = "repeat until the half width of tokens_per_s's 95%% interval is at most this share of its median (0.05)"
    sweep.add_argument("--precision-target", metavar="SHARE", help=text)
    text = "begin no run after this time: 90s, 30min or 2h; the same command runs what is missing"
    sweep.add_argument("--budget", metavar="TIME", help=text)
    text = "write a batch script that runs the sweep in one Slurm allocation; run nothing"
    sweep.add_argument("--slurm", type=_path, metavar="FILE.sbatch", help=text)

    tune = add("tune", "find the fastest message size on this network, for --tuned; alone or under mpirun")
    _add_knobs(tune)
    tune.add_argument("--num-workers", metavar="VALUE", help="without mpirun: number of workers to launch")
    tune.add_argument("--out", type=_path, required=True, metavar="FILE.yaml", help="file that --tuned reads")


def _add_reading(add: Add) -> None:
    """Add status, report, explain, published and compare, which read results."""
    status = add("status", "progress of a sweep, from its results folder; also while it runs")
    status.add_argument("folder", type=_path, metavar="DIR")

    report = add("report", "tables, figures, report.html and report.md of a results folder")
    report.add_argument("folder", type=_path, metavar="DIR")
    text = "also write every run's raw samples as event files (pip install 'psring[tensorboard]')"
    report.add_argument("--tensorboard", action="store_true", help=text)
    margin = "speeds that differ by less are equivalent; 2%% or 0.02 [2%%]"
    report.add_argument("--margin", default="2%", metavar="SHARE", help=margin)
    report.add_argument("--allow-mixed", action="store_true", help="join runs of different hosts, versions or commits")

    explain = add("explain", "why each cell takes as long as it does, and what would help most")
    explain.add_argument("folder", type=_path, metavar="DIR")
    explain.add_argument("--cell", metavar="NAME", help="only cells whose names (summary.csv) begin so")

    published = add("published", "others' published measurements, predicted from their settings alone")
    text = "measurements of your own instead of those that come with psring: docs/published.md says how to write them"
    published.add_argument("--rows", type=_path, nargs="+", metavar="FILE.yaml", help=text)
    text = "also write published.csv, published.md and the figure (svg, png, pdf) there"
    published.add_argument("--out", type=_path, metavar="DIR", help=text)

    compare = add("compare", "two folders, or two strategies of one, cell by cell: B against A, with intervals")
    compare.add_argument("a", metavar="A", help="results folder; with --within, a strategy")
    compare.add_argument("b", metavar="B", help="results folder; with --within, a strategy")
    compare.add_argument("--within", type=_path, metavar="DIR", help="results folder whose strategies A and B are")
    compare.add_argument("--margin", default="2%", metavar="SHARE", help=margin)
    text = "exit with 1 if in any cell the interval of B / A lies below 1 - SHARE, or only B has no numbers"
    compare.add_argument("--fail-if-slower", metavar="SHARE", help=f"{text}; 5%% or 0.05")


def _add_predicting(add: Add) -> None:
    """Add predict, which goes beyond what was measured, and validate, which says how well."""
    predict = add(
        "predict", "throughput beyond what was measured, from a results folder or from a target's description"
    )
    predict.add_argument(
        "folder", type=_path, nargs="?", metavar="DIR", help="results folder whose runs it is fitted to"
    )
    predict.add_argument("--sweep", type=_path, metavar="SWEEP.yaml", help="predict the cells of this file [DIR's own]")
    predict.add_argument("--num-nodes", metavar="N,N", help="predict DIR's strategies on so many nodes: 8,64,512,4096")
    text = "dedicated servers among the nodes, to try each; auto: the fastest number [auto]"
    predict.add_argument("--num-servers", metavar="auto|S,S", help=text)
    predict.add_argument("--nodes-of", type=_within(int, 1, 1 << 14), metavar="G", help="workers per node [1]")
    predict.add_argument("--link", metavar="RATE", help="every node's link: 25gbit [as measured]")
    predict.add_argument("--model", metavar="MODEL", help="preset GPT [as measured]")
    predict.add_argument("--device", metavar="DEVICE", help="data sheet that gives the time of compute [as measured]")
    text = "share of the device's peak rate that forward and backward reach [0.4]"
    predict.add_argument("--mfu", type=_within(float, 1e-3, 1.0), metavar="SHARE", help=text)
    text = "instead of DIR: gpt2, 25gbit, a100 at 40%% MFU, 8 nodes"
    predict.add_argument("--target", metavar="TEXT", help=text)
    text = "costs of hosts and links to use instead of those fitted to DIR"
    predict.add_argument("--calibration", type=_path, metavar="FILE.json", help=text)
    text = "price of a node for an hour: adds the price of a million tokens"
    predict.add_argument("--price-per-node-hour", type=_within(float, 0.0, 1e9), metavar="X", help=text)
    predict.add_argument("--out", type=_path, metavar="FILE.csv", help="also write a row per cell, as in summary.csv")
    text = "also draw who is fastest over nodes and links, and over nodes and model sizes (.png, .svg or .pdf)"
    predict.add_argument("--map", type=_path, metavar="FILE", help=text)

    validate = add("validate", "how well the model predicts cells that it was not fitted to, beside naive predictors")
    validate.add_argument("folder", type=_path, metavar="DIR")
    text = "fit cells of at most so many nodes, predict the others [4]"
    validate.add_argument("--fit-up-to", type=_within(int, 1, 1 << 14), metavar="N", help=text)
    text = "instead of a fit: what psring predict --out wrote before these runs"
    validate.add_argument("--predictions", type=_path, metavar="FILE.csv", help=text)
    text = "the folder that --predictions were fitted to: adds the naive predictor that is fitted, too"
    validate.add_argument("--fit", type=_path, metavar="DIR", help=text)


def _add_preparing(add: Add) -> None:
    """Add data, calibrate, scale-model and doctor, which prepare a measurement."""
    data = add("data", "prepare tokens for --data")
    data.add_argument("what", choices=["prepare"])
    text = "any file, whose bytes become tokens; a NumPy array or a data file of llm.c, whose tokens are kept"
    data.add_argument("text", type=_path, metavar="TEXT", help=text)
    text = "of a raw file that holds tokens already: uint16, uint32 or int64, big-endian with -be [bytes: it does not]"
    data.add_argument("--dtype", choices=list(TOKEN_DTYPES), default="bytes", metavar="DTYPE", help=text)
    data.add_argument("--out", type=_path, required=True, metavar="FILE.bin")

    calibrate = add(
        "calibrate", "time every layer, memory, and under mpirun links and messages; for --compute-from and predict"
    )
    _add_knobs(calibrate)
    calibrate.add_argument("--out", type=_path, required=True, metavar="FILE.json")

    scale = add("scale-model", "print a sweep file that models a larger cluster on this machine's emulated nodes")
    scale.add_argument("--target", required=True, metavar="TEXT", help="gpt2, 25gbit, a100 at 40%% MFU, 8 nodes")

    add("doctor", "what this machine can run, what is missing, and the command that installs it")


def _add_edge(add: Add) -> None:
    """Add generate and compress, which use a trained model."""
    generate = add("generate", "print text from a trained model")
    generate.add_argument("file", type=_path, metavar="FILE", help="weights that psring run --save-parameters wrote")
    generate.add_argument("--prompt", default="\n", metavar="TEXT", help="text to go on from [a line break]")
    text = "tokens to print; a byte each by default [400]"
    generate.add_argument("--max-tokens", type=_within(int, 0, 1e9), default=400, metavar="N", help=text)
    text = "divides the logits before a token is drawn; 0: always the likeliest token [0.8]"
    generate.add_argument("--temperature", type=_within(float, 0, 1e6), default=0.8, metavar="VALUE", help=text)
    text = "draw among this many likeliest tokens [40]"
    generate.add_argument("--top-k", type=_within(int, 1, 1e9), default=40, metavar="N", help=text)
    generate.add_argument("--seed", type=_within(int, 0, MAX_SEED), default=0, metavar="N", help="of the draw [0]")
    _add_heads(generate)
    _add_compress(add("compress", "make a trained model small for the edge: loss, size and speed of every variant"))


def _add_heads(command: argparse.ArgumentParser) -> None:
    text = "heads of a model whose file does not say it"
    command.add_argument("--n-head", type=_within(int, 1, 1 << 10), metavar="N", help=text)


def _add_compress(compress: argparse.ArgumentParser) -> None:
    text = "weights that psring run --save-parameters wrote"
    compress.add_argument("file", type=_path, metavar="FILE", help=text)
    text = "new folder for models, measurements and report"
    compress.add_argument("--out", type=_path, required=True, metavar="DIR", help=text)
    text = "original, or parts joined by +: distilled, pruned or structured, int8_dynamic, int8_weight_only or "
    text += "int4_weight_only, onnx [14 of these]"
    compress.add_argument("--variants", metavar="NAME,NAME", help=text)
    compress.add_argument("--data", metavar="FILE.bin", help="text to train and evaluate on [that of the model]")
    count, share = _within(int, 1, MAX_COUNT), _within(float, 0, 1)
    for flag, kind, default, text in (
        ("--steps", count, 500, "training steps of a student or a pruned model"),
        ("--batch-size", count, 8, "sequences per step, and per held-out batch"),
        ("--learning-rate", _within(float, 0, MAX_FACTOR), 1e-3, "of AdamW at the first step; falls to 0"),
        ("--temperature", _within(float, 0.1, 100), 2.0, "divides both models' logits in the divergence"),
        ("--distillation-share", share, 0.5, "weight of the divergence; that of the cross-entropy is the rest"),
        ("--student-layers", count, None, "blocks of a student; by default half of the model's"),
        ("--sparsity", _within(float, 0, 0.99), 0.5, "share of weights, or of heads and neurons, that is pruned"),
        ("--eval-batches", count, 16, "held-out batches of the loss"),
        ("--repeats", count, 6, "launches that time every variant"),
        ("--num-threads", _within(int, 1, 1024), 1, "CPU threads"),
        ("--seed", _within(int, 0, MAX_SEED), 1337, "of the order of the data and of the launches"),
    ):
        told = text if default is None else f"{text} [{default}]"
        compress.add_argument(flag, type=kind, default=default, metavar="VALUE", help=told)
    _add_heads(compress)


Number = TypeVar("Number", int, float)
NUMBERS = {int: "whole number", float: "number"}


MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095  # of Linux


def _path(text: str) -> Path:
    """Return the path of a flag; an empty one (of an unset variable of a shell) is not the current folder."""
    names = [os.fsencode(name) for name in text.split("/")]
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("an empty name, or one with the character NUL, is no path")
    if max(map(len, names)) > MAX_NAME_BYTES or len(os.fsencode(text)) > MAX_PATH_BYTES:
        raise argparse.ArgumentTypeError(f"a name of more than {MAX_NAME_BYTES} bytes: {shorten(text)}")
    return Path(text)


def _within(kind: type[Number], low: float, high: float) -> Callable[[str], Number]:
    """Return a reader of a number from `low` to `high`."""

    def read(text: str) -> Number:
        try:
            value = kind(text)
            if low <= value <= high:
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{shorten(text)} is no {NUMBERS[kind]} from {low:g} to {high:g}")

    return read


def _add_knobs(command: argparse.ArgumentParser) -> None:
    """Add every knob of RunConfig in its group, with its docstring as help."""
    for title, classes in GROUPS.items():
        group = command.add_argument_group(title)
        for name in (name for each in classes for name in each.__annotations__ if name in RUN_FLAGS):
            _add_knob(group, name)


def _add_knob(group: argparse._ArgumentGroup, name: str) -> None:
    field = RunConfig.model_fields[name]
    default = "" if field.default is None else f" [{field.default}]"
    text = (field.description or "").replace("%", "%%") + default
    if isinstance(field.default, bool):
        group.add_argument(RUN_FLAGS[name], action=argparse.BooleanOptionalAction, default=None, help=text)
    else:
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        group.add_argument(RUN_FLAGS[name], metavar="|".join(choices) or "VALUE", help=text)


def _add_cluster_actions(cluster: argparse.ArgumentParser) -> None:
    actions = cluster.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        action.add_argument("--name", default="psring", help="name of the cluster; several may be up at once [psring]")
        return action

    up = add("up", "bring a cluster up")
    up.add_argument("--num-nodes", type=int, required=True, metavar="N")
    up.add_argument("--link", required=True, metavar="RATE", help="200mbit, or per node: n0=1gbit,*=50mbit")
    up.add_argument(
        "--num-servers", type=int, default=0, metavar="S", help="number of last nodes whose link server=RATE sets [0]"
    )
    up.add_argument("--delay", metavar="TIME", help="one way, on every link: 2ms (needs the kernel's netem)")
    up.add_argument(
        "--congestion-control", default=DEFAULT_CONGESTION_CONTROL, metavar="reno|cubic", help="of the nodes' TCP"
    )
    add("down", "kill the processes on a cluster and remove it")
    actions.add_parser("status", help="list the clusters that are up and the bytes on their links")
    execute = add("exec", "run a command on a node: exec NODE -- COMMAND")
    execute.add_argument("node", metavar="NODE")
    execute.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    shell = actions.add_parser("shell", help="a shell in which clusters need no root; they are removed at its end")
    shell.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    check = actions.add_parser("check", help="measure which sizes and rates this machine can emulate (about a minute)")
    check.add_argument("--num-nodes", default="2,4,8,16", metavar="N,N", help="sizes to try [2,4,8,16]")
    check.add_argument("--link", default="100mbit,200mbit,500mbit,1gbit,2gbit", metavar="RATE,RATE")
    agent = actions.add_parser("agent", help="replaces ssh on the nodes")
    agent.add_argument("words", nargs=argparse.REMAINDER)


def knobs(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the knobs given on a command line."""
    return {name: getattr(arguments, name) for name in RUN_FLAGS if getattr(arguments, name) is not None}
