"""A reader that leaves, a full device or a closed stream does not end a command."""

from __future__ import annotations

import os
import sys

import pytest

from bench.output import OutputLost, has_reader, tolerant


def test_a_closed_pipe_is_quiet_and_what_follows_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        done = 0
        with tolerant():
            assert has_reader()
            for _ in range(3):
                print("x" * 100_000, flush=True)
                done += 1
            assert not has_reader()  # what only prints may end
    assert done == 3


def test_a_full_device_is_an_error_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    done = 0

    def write() -> None:
        nonlocal done
        with open("/dev/full", "w", encoding="utf-8") as full:
            monkeypatch.setattr(sys, "stdout", full)
            with tolerant():
                print("x", flush=True)
                done += 1

    with pytest.raises(OutputLost, match="No space left"):
        write()
    assert done == 1


def test_a_closed_stream_is_the_null_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with tolerant():
        print("psring: no", file=sys.stderr)
    assert capsys.readouterr().out == ""
