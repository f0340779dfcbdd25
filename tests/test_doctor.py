"""What doctor says of a probe that failed."""

from __future__ import annotations

import pytest

from bench.doctor import _reason

ERROR = "ModuleNotFoundError: No module named 'horovod'"
NOTICE = "-----\nprterun detected that one or more processes exited with non-zero status\n\n  Exit code: 1\n-----\n"


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("", "no output"),
        ("----\n", "no output"),
        (f"Traceback:\n{ERROR}\n{NOTICE}", ERROR),
        (NOTICE, "Exit code: 1"),
    ],
)  # fmt: skip
def test_the_reason_is_the_error_and_not_a_launchers_notice(stderr: str, reason: str) -> None:
    assert _reason(stderr) == reason
