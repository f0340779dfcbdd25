#!/usr/bin/env bash
# Every check, set up first if needed: ruff, mypy, pytest. The same command CI calls; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
. .venv/bin/activate
ruff check .
ruff format --check .
mypy
pytest "$@"
