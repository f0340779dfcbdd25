"""Commands that read results or predict: report, compare, explain, predict, validate, published."""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
from pathlib import Path

from bench.actions import EXIT_FAILED
from bench.config import BadInput
from bench.sweep.file import read_sweep


def report(arguments: argparse.Namespace) -> int:
    """Write the report of a folder; print its answer."""
    if (arguments.folder / "variants.jsonl").is_file():  # of psring compress
        return report_edge(arguments.folder)
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


def report_edge(folder: Path) -> int:
    from bench.report.plotting import import_matplotlib

    import_matplotlib()
    from bench.report.edge import write_report

    print(write_report(folder), end="\n\n")
    print(folder / "report.html")
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Print the cells of two folders side by side."""
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


def explain(arguments: argparse.Namespace) -> int:
    """Print what the steps of cells consist of."""
    from bench.predict import explain

    found = explain.only(explain.of_folder(arguments.folder), arguments.cell)
    print("\n".join(line for one in found for line in explain.describe(one)), end="\n\n")
    print(explain.summary(found))
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


def predict(arguments: argparse.Namespace) -> int:
    """Print or write predictions."""
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


def validate(arguments: argparse.Namespace) -> int:
    """Print how well predictions hold."""
    from bench.predict import validate

    if arguments.predictions and arguments.fit_up_to is not None:
        raise BadInput("--fit-up-to: nothing is fitted with --predictions; leave one of them out")
    most = validate.FIT_UP_TO if arguments.fit_up_to is None else arguments.fit_up_to
    print(validate.as_text(validate.validate(arguments.folder, most, arguments.predictions, arguments.fit)))
    return 0


def published(arguments: argparse.Namespace) -> int:
    """Predict what others measured."""
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
