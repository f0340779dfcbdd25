"""A few seeds of scripts/fuzz_input.py: a damaged settings file is read, or refused on one line."""

from __future__ import annotations

from pathlib import Path

from tests.support.fuzz import settings


def test_damaged_settings_files_are_answered_on_one_line(tmp_path: Path) -> None:
    assert list(settings(tmp_path, range(72))) == []
