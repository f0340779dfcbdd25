#!/usr/bin/env bash
# The main job: set up if needed, run bench/sweeps/demo.yaml (its budget, then the report: less than 5 minutes), write the
# report to results/demo/ and print its answer and its path.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
. .venv/bin/activate
# 1: some runs failed, or trained another model; the report says which and why.
psring sweep bench/sweeps/demo.yaml --out results/demo "$@" || [ $? -eq 1 ]
psring report results/demo
