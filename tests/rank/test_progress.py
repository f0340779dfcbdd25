"""Laws of a run's progress: seldom, between steps, one line on a terminal and few lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bench.config import RunConfig
from bench.mpi import RankInfo
from bench.rank import progress
from bench.rank.progress import RunProgress
from bench.records import StepRecord

CONFIG = RunConfig(strategy="local", steps=97, warmup_steps=3, batch_size=2, block_size=32)


def step(number: int) -> StepRecord:
    return StepRecord(
        worker=0, step=number, warmup=number < 3, loss=5 - number / 100, step_s=0.5, data_s=0, forward_s=0,
        backward_s=0, exposed_communication_s=0, optimizer_s=0, communication_s=0,
    )  # fmt: skip


def told(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> str:
    """What a run of 100 steps of half a second prints."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    text = io.StringIO()
    said = RunProgress(CONFIG, Console(file=text, force_terminal=terminal, width=100))
    for number in range(CONFIG.total_steps):
        now[0] += 0.5
        said.tell(step(number))
    said.close()
    return text.getvalue()


def test_few_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = told(monkeypatch, terminal=False).splitlines()
    assert lines[0] == "psring: step 5 of 100, 128 tokens/s so far, loss 4.960, about 48 s to go"
    steps = [int(line.split()[2]) for line in lines]
    assert steps == [5, 13, 29, 61]  # 2, 6, 14 and 30 s after the first step


def test_one_line_that_is_gone_at_the_end_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = told(monkeypatch, terminal=True)
    assert "step 51 of 100" in text
    assert text.endswith("\x1b[2K")  # the line is erased


def test_a_short_run_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    text = io.StringIO()
    said = RunProgress(CONFIG, Console(file=text))
    said.tell(step(0))
    said.tell(step(1))
    said.close()
    assert text.getvalue() == ""


@pytest.mark.parametrize("launcher", ["horovodrun", "srun"])
def test_launchers_that_change_lines_are_no_terminal(launcher: str) -> None:
    assert not progress.on_terminal(RankInfo(launcher, 0, 2, 0))
