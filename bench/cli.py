"""The psring command: its errors and exit codes, and which function of bench/actions does what."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from bench.actions import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, edge, ranks, results, sweeps
from bench.actions.ranks import explain_traceback
from bench.arguments import parse
from bench.config import AgreedBadInput, BadInput, DiskFull
from bench.output import OutputLost, tolerant

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
    explain_traceback()


def _rank() -> int:
    from bench.mpi import RankInfo

    with suppress(BadInput):
        return RankInfo.detect(os.environ).rank
    return 0


def _template(arguments: argparse.Namespace) -> int:
    from bench.sweep import template

    code = main(template.serve(arguments.listener))
    from bench.rank import preload

    preload.end(code)


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": ranks.run,
    "sweep": sweeps.sweep,
    "tune": ranks.tune,
    "status": sweeps.status,
    "report": results.report,
    "explain": results.explain,
    "published": results.published,
    "compare": results.compare,
    "predict": results.predict,
    "validate": results.validate,
    "generate": edge.generate,
    "compress": edge.compress,
    "data": sweeps.data,
    "calibrate": ranks.calibrate,
    "scale-model": sweeps.scale_model,
    "doctor": sweeps.doctor,
    "cluster": sweeps.cluster,
    "ranks": ranks.ranks,
    "template": _template,
}

if __name__ == "__main__":
    sys.exit(main())
