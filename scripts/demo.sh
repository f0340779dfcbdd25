#!/usr/bin/env bash
# The main job: set up if needed, run bench/sweeps/demo.yaml, write its report to results/demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
. .venv/bin/activate
psring sweep bench/sweeps/demo.yaml --out results/demo "$@"
psring report results/demo
