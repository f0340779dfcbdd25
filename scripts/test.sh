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
# A file mostly computes or mostly waits for ranks. A worker that dies ends the run: xdist waits for ever for the files
# of a worker that it has replaced (pytest-xdist issue 1378).
timeout --foreground --signal INT --kill-after 60 3000 \
  pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "$@"
