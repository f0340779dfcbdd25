"""The files that each rank of a sweep's launch writes: `rank-N.log`, and `rank-N.failure` if it fails."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

_folder: Path | None = None  # of this rank; None where it prints to its launcher only


@dataclass(frozen=True)
class Failure:
    """Why a rank ended its launch. `type` is the exception's class, blank where the rank reports another one."""

    rank: int
    role: str
    host: str
    type: str
    message: str
    traceback: str = ""

    def describe(self) -> str:
        """The failure in one line."""
        if self.type in ("", "BadInput", "AgreedBadInput"):
            return self.message
        return f"rank {self.rank} ({self.role}) on {self.host} failed: {self.type}: {self.message}"

    @staticmethod
    def of(error: BaseException, rank: int, role: str) -> Failure:
        """An exception of this rank."""
        stack = "".join(traceback.format_exception(error))
        return Failure(rank, role, socket.gethostname(), type(error).__name__, str(error), stack)


def redirect(folder: Path, rank: int) -> None:
    """Send what this process prints from now on, its C libraries and faulthandler included, to `rank-N.log`."""
    global _folder
    _folder = folder
    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def mark_joined() -> None:
    """Leave a sign, where ranks have a folder, that all of them have joined."""
    if _folder is not None:
        (_folder / "joined").touch()


def have_joined(folder: Path) -> bool:
    """Whether all ranks of a launch have joined."""
    return (folder / "joined").exists()


def keep(failure: Failure) -> None:
    """Write this rank's failure file where ranks have a folder; only its first failure is kept."""
    if _folder is None:
        return
    with contextlib.suppress(OSError), (_folder / f"rank-{failure.rank}.failure").open("x") as file:
        json.dump(asdict(failure), file)


def read(folder: Path) -> list[Failure]:
    """The failures of a launch's ranks in the order in which they were written; half-written ones are left out."""
    found = []
    for path in sorted(folder.glob("rank-*.failure"), key=lambda path: path.stat().st_mtime_ns):
        with contextlib.suppress(ValueError, TypeError):
            found.append(Failure(**json.loads(path.read_text())))
    return found


def logs(folder: Path) -> dict[int, str]:
    """What each rank of a launch has printed, by rank; ranks without a log are left out."""
    paths = {int(re.sub(r"\D", "", path.stem)): path for path in folder.glob("rank-*.log")}
    return {rank: paths[rank].read_text(errors="replace") for rank in sorted(paths)}


def join_logs(launcher: str, ranks: Iterable[tuple[int, str]]) -> str:
    """One text of all logs of a launch, under a heading each."""
    parts = [f"==> launcher <==\n{launcher}"] if launcher else []
    parts += [f"==> rank {rank} <==\n{text}" for rank, text in ranks]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)
