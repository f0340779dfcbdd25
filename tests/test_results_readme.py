"""The column dictionary is whole: whatever a results folder can hold has its line there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from bench import records
from bench.config import RunConfig
from bench.ledger import COLUMNS
from bench.records import RunRecord
from bench.report import bounds, cells, columns, loss
from bench.shape import GPTShape
from bench.summary import Summary
from tests.support.synthetic import demo_records, make_steps

README = Path(__file__).parent.parent / "results" / "README.md"


def described() -> set[str]:
    return set(re.findall(r"^\| `(\w+)` \|.*\|.*\S.*\|$", README.read_text(), flags=re.MULTILINE))


def test_it_is_what_the_fields_say() -> None:
    stale = "results/README.md is stale; run: python -m bench.report.columns"
    assert columns.filled(README.read_text()) == README.read_text(), stale


def test_every_field_of_every_record_is_described() -> None:
    models = (RunConfig, GPTShape, Summary, RunRecord)
    names = {name for model in models for name in model.model_fields}
    names |= {*COLUMNS, *make_steps(demo_records(repeats=1)[0])[0].row()}
    assert sorted(names - described()) == []


def test_every_column_of_the_tables_is_described() -> None:
    runs = records.frame(demo_records(repeats=1))
    columns = {*runs.columns, *cells.summarize(runs).columns, *loss.COLUMNS}
    assert sorted(columns - described()) == []


def test_nothing_is_described_that_is_not_there() -> None:
    runs = records.frame(demo_records(repeats=1))
    known = {*runs.columns, *cells.summarize(runs).columns, *loss.COLUMNS, *RunRecord.model_fields}
    known |= {*bounds.COLUMNS, "bounded_by", *make_steps(demo_records(repeats=1)[0])[0].row()}
    assert sorted(described() - known) == []


@pytest.mark.skipif(not (README.parents[1] / ".git").exists(), reason="what is committed, only git knows")
def test_every_study_that_it_names_is_there() -> None:
    (table,) = re.findall(r"^\| reference study .*?\n\n", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    named = {name for row in table.split("\n")[2:-2] for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    committed = subprocess.run(
        ["git", "ls-files", "results"], cwd=README.parents[1], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert named == {name.split("/")[1] for name in committed} - {README.name}
