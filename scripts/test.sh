#!/usr/bin/env bash
# Every check, set up first if needed: ruff, mypy, links, pytest. The same command CI calls; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
. .venv/bin/activate
ruff check .
ruff format --check .
mypy
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
NO_MKDOCS_2_WARNING=1 mkdocs build --strict --site-dir "$site"  # a broken link or anchor fails it
pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"  # a file mostly computes or mostly waits for ranks
