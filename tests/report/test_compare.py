"""`psring compare`: the same cells side by side, and an exit code that a CI job can trust."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import cli, records
from bench.report import compare
from tests.support.synthetic import make_failure, make_record

RINGS: dict[str, Any] = {"strategy": "ring_allreduce", "num_workers": 2}


def folder(path: Path, *speeds: float, environment: str = "e0", **config: Any) -> Path:
    path.mkdir()
    for repeat, speed in enumerate(speeds):
        run = make_record(repeat=repeat, tokens_per_s=speed, environment=environment, **{**RINGS, **config})
        records.append(path, run)
    return path


@pytest.mark.parametrize(
    ("speeds", "verdict", "code"),
    [
        ([100.0, 100.1, 100.2], "equivalent", 0),
        ([120.0, 121.0, 122.0], "faster", 0),
        ([97.0, 97.1, 97.2], "slower", 0),  # by less than 5 %
        ([80.0, 81.0, 82.0], "slower", 1),
        ([80.0, 101.0, 82.0], "undecided", 0),  # not surely slower
        ([80.0], "no verdict, fewer than 3 launches", 0),
    ],
)
def test_the_exit_code_follows_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], speeds: list[float], verdict: str, code: int
) -> None:
    a, b = folder(tmp_path / "a", 100.0, 100.1, 100.2), folder(tmp_path / "b", *speeds)
    assert cli.main(["compare", str(a), str(b), "--fail-if-slower", "5%"]) == code
    assert verdict in capsys.readouterr().out
    assert cli.main(["compare", str(a), str(b)]) == 0


def test_a_cell_that_lost_its_numbers_fails_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = folder(tmp_path / "a", 100.0, 101.0), folder(tmp_path / "b", 100.0, 101.0)
    records.append(a, make_record(**RINGS, batch_size=4))
    records.append(b, make_failure("timeout", "no step", **RINGS, batch_size=4))
    records.append(b, make_record(**RINGS, batch_size=16))
    assert cli.main(["compare", str(a), str(b), "--fail-if-slower", "0.05"]) == 1
    printed = capsys.readouterr()
    assert "no numbers in B" in printed.out
    assert "no numbers in A" in printed.out
    assert "1 of 3 cells" in printed.err


def test_other_environments_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = folder(tmp_path / "a", 1.0, 2.0), folder(tmp_path / "b", 1.0, 2.0, environment="e1")
    cli.main(["compare", str(a), str(b)])
    assert "Not the same environment: e0 and e1." in capsys.readouterr().out


def test_a_folder_equals_itself(tmp_path: Path) -> None:
    a = str(folder(tmp_path / "a", 100.0, 101.0, 120.0))
    found = compare.compare(a, a, None)
    assert list(found["verdict"]) == ["undecided"]
    assert list(compare.compare(a, a, None, margin=0.9)["verdict"]) == ["equivalent"]
    assert list(found["ratio"]) == [1.0]


def test_two_strategies_of_a_folder_meet_on_equal_work_and_workers(tmp_path: Path) -> None:
    both = folder(tmp_path / "a", 100.0, 50.0, 70.0)
    for repeat, speed in enumerate([200.0, 100.0, 140.0]):
        for servers in (1, 2):
            cell = {"strategy": "parameter_server", "num_workers": 2, "num_servers": servers}
            records.append(both, make_record(repeat=repeat, tokens_per_s=servers * speed, **cell))
    found = compare.compare("ring_allreduce", "parameter_server", both)
    assert list(found["num_servers"]) == [1, 2]
    assert list(found["ratio"]) == pytest.approx([2.0, 4.0])
    assert set(found["verdict"]) == {"faster"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["a", "nowhere"], "no runs.jsonl"),
        (["a", "b"], "no cell with numbers in common"),
        (["ring", "ddp", "--within", "a"], "no strategy is called 'ring'"),
        (["ddp", "local", "--within", "a"], "no cell with numbers in common"),
        (["a", "a", "--fail-if-slower", "much"], "write 5% or 0.05"),
        (["a", "a", "--fail-if-slower", "200%"], "write 5% or 0.05"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    complaint: str,
) -> None:
    folder(tmp_path / "a", 1.0)
    folder(tmp_path / "b", 1.0, batch_size=2)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", *words]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
