"""A few seeds of scripts/fuzz_input.py: a damaged results folder is read, or refused on one line."""

from __future__ import annotations

from pathlib import Path

from tests.support.fuzz import folders


def test_damaged_results_folders_are_answered_on_one_line(tmp_path: Path) -> None:
    assert list(folders(tmp_path, range(12))) == []
