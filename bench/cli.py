"""The psring command: one function per subcommand, which imports what it needs, so that every command starts fast."""

from __future__ import annotations

import argparse
import errno
import faulthandler
import gc
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.arguments import knobs, parse
from bench.config import CLUSTER_VARIABLE, AgreedBadInput, BadInput, DiskFull, RunConfig, make_config
from bench.output import OutputLost, tolerant
from bench.sweep.file import read_sweep

if TYPE_CHECKING:
    from bench.rank.saved import Saved

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130
OTHER_RANKS_WAIT_S = 3.0
# What the system says of a path that a user gave and that nothing can be read from or written to.
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one psring command and return its exit code."""
    code = EXIT_FAILED
    try:
        with tolerant():
            code = _main(argv)
    except OutputLost as error:
        with suppress(OSError):
            print(f"psring: standard output cannot be written: {error}", file=sys.stderr, flush=True)
        return code or EXIT_FAILED
    return code


def _main(argv: Sequence[str] | None) -> int:
    try:
        _check_current_directory()
        arguments = parse(sys.argv[1:] if argv is None else list(argv))
        return ACTIONS[arguments.command](arguments)
    except SystemExit as end:  # of --help and --version
        if end.code:
            raise
        return 0
    except BadInput as error:
        _print_once(error)
        return EXIT_BAD_INPUT
    except DiskFull as error:
        print(f"psring: {error}", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        if error.errno not in UNUSABLE or error.filename is None:
            raise
        _print_once(BadInput(f"{error.filename}: cannot be used: {error.strerror}"))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("psring: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _check_current_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise BadInput("the current directory was removed; change to one that exists") from None


def _print_once(error: BadInput) -> None:
    """Print the reason from one rank: other ranks wait, and print only if the launch has not been ended by then."""
    if _rank() > 0:
        if isinstance(error, AgreedBadInput):
            return
        time.sleep(OTHER_RANKS_WAIT_S)
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(error))
    print(f"psring: {line}", file=sys.stderr, flush=True)
    _explain_traceback()


def _rank() -> int:
    from bench.mpi import RankInfo

    with suppress(BadInput):
        return RankInfo.detect(os.environ).rank
    return 0


def _explain_traceback() -> None:
    """Say that horovodrun prints a traceback of its own after a rank that ends with a code other than 0."""
    if "HOROVOD_RANK" in os.environ:
        print("(the traceback that follows is horovodrun's own)", file=sys.stderr, flush=True)


def _run(arguments: argparse.Namespace) -> int:
    from bench import environment
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
            for file in filter(None, (arguments.save_parameters, arguments.trace)):
                check_writable(file)
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
    _explain_traceback()
    return EXIT_FAILED


def _node_links() -> dict[str, object] | None:
    """Return the link knobs of the emulated node that this process runs on, None if it runs on none."""
    name = os.environ.get(CLUSTER_VARIABLE)
    if name is None:
        return None
    from bench.nodes.layout import find

    nodes = find(name)
    return {"link": nodes.link, "delay": nodes.delay, "congestion_control": nodes.congestion_control}


def _calibrate(arguments: argparse.Namespace) -> int:
    from bench.files import check_writable, write_json
    from bench.mpi import ALONE, RankInfo, complete_config

    rank_info, links = RankInfo.detect(os.environ), _node_links() or {}
    config = complete_config(knobs(arguments), ALONE)
    from bench.rank.calibrate_all import calibrate_all, describe

    def check() -> None:
        if rank_info.rank == 0:
            check_writable(arguments.out)

    found = calibrate_all(config, rank_info, str(links["link"]) if links else None, check)
    if found is not None:
        write_json(arguments.out, found.model_dump())
        print("\n".join([f"{arguments.out}:", *describe(found)]))
    return 0


def _scale_model(arguments: argparse.Namespace) -> int:
    from bench.environment import cores
    from bench.scale_model import scale_model

    print(scale_model(arguments.target, cores()), end="")
    return 0


def _tune(arguments: argparse.Namespace) -> int:
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


def _ranks(arguments: argparse.Namespace) -> int:
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


def _template(arguments: argparse.Namespace) -> int:
    from bench.sweep import template

    code = main(template.serve(arguments.listener))
    from bench.rank import preload

    preload.end(code)


def _sweep(arguments: argparse.Namespace) -> int:
    _refuse_ranks("sweep")
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
    bad = [record for record in records if record.status not in ("ok", "unsupported")]
    for record in bad:
        print(f"psring: {record.run_id} {record.status}: {record.reason}", file=sys.stderr)
    return EXIT_FAILED if any(not record.is_rejected for record in bad) else 0


def _refuse_ranks(command: str) -> None:
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

    check_writable(arguments.slurm)
    write_whole(arguments.slurm, batch_script(cells, arguments.file, arguments.out, options))
    print(f"submit it: sbatch {arguments.slurm}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from bench.sweep.status import describe

    print("\n".join(describe(arguments.folder)))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    if (arguments.folder / "variants.jsonl").is_file():  # of psring compress
        return _report_edge(arguments.folder)
    gc.disable()  # nearly all objects live to the end: collecting garbage took a sixth of the time
    from bench.report.plotting import import_matplotlib

    import_matplotlib()
    from bench.report.answer import as_text
    from bench.report.gather import results_folder
    from bench.report.verdicts import share_of
    from bench.report.write import write_report

    margin = share_of(arguments.margin, "--margin")
    folder = results_folder(arguments.folder)
    written = write_report(folder, allow_mixed=arguments.allow_mixed, margin=margin)
    print(as_text(written.answer, shutil.get_terminal_size().columns), end="\n\n")
    if arguments.tensorboard:
        from bench.report.events import write_events

        print(f"{len(write_events(folder))} runs in {folder / 'tensorboard'}")
    print(folder / "report.html")
    return 0


def _published(arguments: argparse.Namespace) -> int:
    from bench.predict.published.corpus import read_corpus, read_rows
    from bench.predict.published.score import predict
    from bench.predict.published.table import as_text, summary

    given = arguments.rows
    rows = read_corpus() if given is None else [row for file in given for row in read_rows(file)]
    if arguments.out:
        from bench.report.published import check_folder

        check_folder(arguments.out)
    found = [predict(row) for row in rows]
    print("\n".join([*as_text(found), "", *summary(found)]))
    if arguments.out:
        from bench.report.published import write_folder

        print("\n".join(map(str, write_folder(found, arguments.out))))
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from bench.predict import explain

    found = explain.only(explain.of_folder(arguments.folder), arguments.cell)
    print("\n".join(line for one in found for line in explain.describe(one)), end="\n\n")
    print(explain.summary(found))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from bench.report import compare
    from bench.report.verdicts import share_of

    given = arguments.fail_if_slower
    share = None if given is None else share_of(given, "--fail-if-slower")
    found = compare.compare(arguments.a, arguments.b, arguments.within, share_of(arguments.margin, "--margin"))
    print(compare.as_text(found, arguments.a, arguments.b))
    slower = found.iloc[:0] if share is None else compare.slower_than(found, share)
    if len(slower):
        cells = f"{len(slower)} of {len(found)} cells"
        print(f"psring: B is slower by more than {arguments.fail_if_slower}, or lost, in {cells}", file=sys.stderr)
    return EXIT_FAILED if len(slower) else 0


def _predict(arguments: argparse.Namespace) -> int:
    from bench.files import check_writable
    from bench.predict import command, grid, table

    change = grid.Change(
        num_nodes=grid.parse_counts(arguments.num_nodes, "--num-nodes") if arguments.num_nodes is not None else (),
        num_servers=grid.parse_servers(arguments.num_servers),
        ranks_per_node=arguments.nodes_of or 1,
        mfu=arguments.mfu or grid.DEFAULT_MFU,
        **{name: getattr(arguments, name) for name in ("link", "model", "device")},
    )
    _check_predicting(arguments)
    cells = read_sweep(arguments.sweep, {}).runs(str(arguments.sweep)) if arguments.sweep else None
    reads = [arguments.sweep, arguments.calibration]
    for file in filter(None, (arguments.out, arguments.map)):
        check_writable(file, reads)
        reads.append(file)
    if arguments.map and arguments.map.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise BadInput(f"--map: {arguments.map} ends in none of .png, .svg and .pdf")
    answer = command.predict(
        command.Request(
            arguments.folder, arguments.target, cells, arguments.calibration, change, arguments.price_per_node_hour
        )
    )
    if arguments.out:
        table.write(arguments.out, answer.rows)
    if arguments.map:
        from bench.report.plotting import import_matplotlib

        import_matplotlib()
        from bench.report import maps

        maps.write(arguments.map, answer.configs, answer.fit, answer.change)
    print(command.as_text(answer))
    return 0


def _check_predicting(arguments: argparse.Namespace) -> None:
    """Raise BadInput for a flag that would change nothing."""

    def given(*names: str) -> list[str]:
        return [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) is not None]

    changes = given("num_servers", "link", "model", "device")
    if arguments.sweep and (found := given("target", "num_nodes") + changes):
        raise BadInput(f"{found[0]}: --sweep names the cells; write it there, or leave --sweep out")
    of_folder = arguments.folder and not arguments.sweep and arguments.num_nodes is None
    if of_folder and (found := given("nodes_of") + changes):
        raise BadInput(f"{found[0]}: changes nothing without --num-nodes; add --num-nodes 8,64, say")
    if arguments.mfu is not None and arguments.device is None:
        raise BadInput("--mfu: is a share of the peak of --device; give both")


def _validate(arguments: argparse.Namespace) -> int:
    from bench.predict import validate

    if arguments.predictions and arguments.fit_up_to is not None:
        raise BadInput("--fit-up-to: nothing is fitted with --predictions; leave one of them out")
    most = validate.FIT_UP_TO if arguments.fit_up_to is None else arguments.fit_up_to
    print(validate.as_text(validate.validate(arguments.folder, most, arguments.predictions, arguments.fit)))
    return 0


def _compress(arguments: argparse.Namespace) -> int:
    _refuse_ranks("compress")
    from bench.edge import recipe
    from bench.edge.libraries import missing

    recipes = recipe.parse(arguments.variants or recipe.DEFAULT)
    for made in recipes if arguments.variants else []:  # of the default ones, those are rows `unsupported`
        if missing(made):
            raise BadInput(f"--variants: {made.name}: {missing(made)}")
    if recipe.Recipe() not in recipes:
        recipes = [recipe.Recipe(), *recipes]  # all are compared with it
    from bench.edge.compress import Options, compress
    from bench.rank import saved

    trained = saved.read(arguments.file, arguments.n_head)
    data = arguments.data or trained.data
    if data is None:
        raise BadInput(f"{arguments.file}: does not say what it was trained on; give --data")
    names = [name for name in Options.__dataclass_fields__ if name != "data"]
    options = Options(data=data, **{name: getattr(arguments, name) for name in names})
    compress(trained, recipes, options, arguments.out, lambda line: print(line, flush=True))
    return _report_edge(arguments.out)


def _trained(arguments: argparse.Namespace) -> Saved:
    """Return the model in a file of psring run, or of psring compress."""
    from bench.edge import export
    from bench.rank import saved

    if arguments.file.suffix == export.SUFFIX and arguments.file.is_file():
        return export.read(arguments.file)[0]
    return saved.read(arguments.file, arguments.n_head)


def _report_edge(folder: Path) -> int:
    from bench.report.plotting import import_matplotlib

    import_matplotlib()
    from bench.report.edge import write_report

    print(write_report(folder), end="\n\n")
    print(folder / "report.html")
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    _refuse_ranks("generate")
    from bench.edge import generate

    trained = _trained(arguments)
    prompt = generate.encode(arguments.prompt, trained.model.shape.vocab_size, trained.reads_bytes)
    if not prompt:
        raise BadInput("--prompt: is empty; give at least one token")
    sampling = generate.Sampling(arguments.temperature, arguments.top_k, arguments.seed)
    decode = generate.decoder(trained.reads_bytes)
    print(arguments.prompt if trained.reads_bytes else arguments.prompt + " ", end="")
    for token in generate.generate(trained.model, prompt, arguments.max_tokens, sampling):
        print(decode(token), end="", flush=True)
    print()
    return 0


def _data(arguments: argparse.Namespace) -> int:
    from bench.rank.data import prepare

    print(f"{arguments.out}: {prepare(arguments.text, arguments.out, arguments.dtype)} tokens")
    return 0


def _cluster(arguments: argparse.Namespace) -> int:
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


def _doctor(arguments: argparse.Namespace) -> int:
    from bench.doctor import print_findings

    return print_findings()


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "sweep": _sweep,
    "tune": _tune,
    "status": _status,
    "report": _report,
    "explain": _explain,
    "published": _published,
    "compare": _compare,
    "predict": _predict,
    "validate": _validate,
    "generate": _generate,
    "compress": _compress,
    "data": _data,
    "calibrate": _calibrate,
    "scale-model": _scale_model,
    "doctor": _doctor,
    "cluster": _cluster,
    "ranks": _ranks,
    "template": _template,
}

if __name__ == "__main__":
    sys.exit(main())
