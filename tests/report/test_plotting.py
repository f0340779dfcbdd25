"""`psring report` works whatever matplotlib finds of the user's; that no figure changes is a test of the figures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench import records
from tests.support.synthetic import make_record

REPOSITORY = Path(__file__).parents[2]
REPORT = "import sys; from bench.cli import main; sys.exit(main(['report', 'study']))"


def test_neither_a_matplotlibrc_nor_the_backend_of_a_notebook_breaks_the_report(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    records.append(tmp_path / "study", make_record())
    (tmp_path / "matplotlibrc").write_bytes(b"text.usetex: True\nno colon\nfont.family: \xff\n")
    users = {"PYTHONPATH": str(REPOSITORY), "MPLBACKEND": "nonsense", "MATPLOTLIBRC": str(tmp_path)}
    argv = [sys.executable, "-P", "-c", REPORT]
    ended = subprocess.run(
        argv, cwd=tmp_path, env={**os.environ, **users}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "study" / "figures" / "overview.png").is_file()
