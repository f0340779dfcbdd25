"""Damage what psring reads and see that it refuses each on one line, soon, without a traceback.

    scripts/fuzz_input.py [settings|folders] [--count 200] [--first-seed 0]

settings: sweep files, tuned files, calibrations, host files, data files, costs of predictions, predictions, others'
measurements and weights in turn. folders: results folders, read by
report, status, compare and sweep --dry-run in turn. One per seed (tests/support/mutate.py). A seed that fails is
printed; the same seed makes the same again. tests/config/test_fuzz.py and tests/report/test_fuzz.py try a few seeds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY))
from tests.support import fuzz  # noqa: E402


def main() -> int:
    """Return 1 if any file was answered wrongly."""
    parser = argparse.ArgumentParser(description="damage what psring reads and see how it answers")
    parser.add_argument("what", nargs="?", choices=["settings", "folders"], default="settings")
    parser.add_argument("--count", type=int, default=200, help="number of files [200]")
    parser.add_argument("--first-seed", type=int, default=0)
    given = parser.parse_args()
    began, failures = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        tried = fuzz.folders if given.what == "folders" else fuzz.settings
        for seed, problem in tried(Path(folder), range(given.first_seed, given.first_seed + given.count)):
            failures += 1
            print(f"seed {seed}: {problem}")
    print(f"{given.count} {given.what}, {failures} answered wrongly, {time.monotonic() - began:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
