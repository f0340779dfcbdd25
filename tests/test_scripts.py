"""The shell scripts refuse a wrong argument before they set anything up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.mark.parametrize(
    ("script", "words", "variables", "said"),
    [
        ("edge.sh", ["--help"], {}, "edge: --help is no folder"),
        ("edge.sh", ["."], {}, "edge: . exists"),
        ("edge.sh", ["new"], {"REPEATS": "0"}, "edge: REPEATS=0 is no number"),
        ("edge.sh", ["new"], {"STEPS": "1e3"}, "edge: STEPS=1e3 is no number"),
        ("sweep_mpirun.sh", ["-o"], {}, "-o is no folder"),
        ("sweep_mpirun.sh", ["new", "nowhere"], {}, "there is no host file nowhere"),
        ("sweep_mpirun.sh", ["new"], {"WORKERS": "1 two"}, "two is no number of ranks"),
        ("sweep_horovodrun.sh", ["new"], {"WORKERS": "0"}, "0 is no number of ranks"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(
    script: str, words: list[str], variables: dict[str, str], said: str
) -> None:
    ended = subprocess.run(
        ["bash", str(SCRIPTS / script), *words], env={**os.environ, **variables}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not (SCRIPTS.parent / "new").exists()
