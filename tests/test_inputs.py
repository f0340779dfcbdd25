"""The files that a run reads: regular ones, which no output replaces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import inputs
from bench.cli import main
from bench.config import BadInput, RunConfig
from bench.hosts import read_hostfile


@pytest.mark.parametrize("knob", ["data", "tuned", "compute_from", "hostfile"])
def test_a_pipe_or_a_device_is_refused_without_waiting(knob: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/zero"):
        config = RunConfig().model_copy(update={knob: path})
        with pytest.raises(BadInput, match=f"{knob}: {path} is no regular file"):
            inputs.identify([config])
    with pytest.raises(BadInput, match="no regular file"):
        read_hostfile(Path("/dev/zero"))


def test_no_output_replaces_what_a_run_reads(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, sweep = tmp_path / "data.bin", tmp_path / "sweep.yaml"
    data.write_bytes(b"\x01\x00\x02\x00" * 5000)
    sweep.write_text("grid: [{strategy: local}]\n")
    small = ["--steps", "1", "--warmup-steps", "0", "--data", str(data)]
    for words in (
        ["run", *small, "--save-parameters", str(data)],
        ["run", *small, "--trace", str(tmp_path / "x"), "--save-parameters", str(tmp_path / "x")],
        ["calibrate", *small, "--out", str(data)],
        ["sweep", str(sweep), "--out", str(tmp_path / "out"), "--slurm", str(sweep)],
    ):
        assert main(words) == 2, words
        assert "give another name" in capfd.readouterr().err
    assert data.stat().st_size == 20_000
    assert {path.name for path in tmp_path.iterdir()} == {"data.bin", "sweep.yaml"}
