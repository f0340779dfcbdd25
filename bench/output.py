"""What psring prints never ends it: a reader that has closed the pipe, a full device, a locale that lacks a letter."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any


class OutputLost(Exception):
    """Standard output could not be written, for another reason than a closed pipe."""


class Lost(io.TextIOBase):
    """A text stream that goes on without its reader; `error` is the first error other than a closed pipe."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: OSError | None = None
        self.has_reader = True

    def __getattr__(self, name: str) -> Any:
        """Be the stream in everything else."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop the text if nobody can read it."""
        with self._tolerating():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if anybody can read it."""
        with self._tolerating():
            self._stream.flush()

    def fileno(self) -> int:
        """Return the stream's descriptor."""
        return int(self._stream.fileno())

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return bool(self._stream.isatty())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's encoding."""
        return str(self._stream.encoding)

    @contextlib.contextmanager
    def _tolerating(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._drop()
        except OSError as error:
            self.error = self.error or error
            self._drop()

    def _drop(self) -> None:
        """Discard what is left in the stream's buffer, so that the interpreter's last flush has nothing to fail at."""
        self.has_reader = False
        with contextlib.suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)


def has_reader() -> bool:
    """Return whether somebody still reads standard output: what only prints may end."""
    return getattr(sys.stdout, "has_reader", True)


@contextlib.contextmanager
def tolerant() -> Iterator[None]:
    """In a block, standard output and standard error are `Lost` streams; a closed one is the null device.

    OutputLost at the end of the block if standard output could not be written for another reason than a closed pipe.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with open(os.devnull, "w", encoding="utf-8") as nothing:
        out, errors = (Lost(stream or nothing) for stream in before)
        sys.stdout, sys.stderr = out, errors
        try:
            yield
            out.flush()
            errors.flush()
        finally:
            sys.stdout, sys.stderr = before
    if out.error:
        raise OutputLost(out.error.strerror)


def markdown(text: str) -> str:
    """Text for one line or table cell of Markdown, in which no link, image, HTML, code or other cell begins."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", text)
