#!/usr/bin/env bash
# The main job: set up if needed, run bench/sweeps/demo.yaml, write its report to results/demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
. .venv/bin/activate
# 1: some runs failed, or were marked invalid; the report says which and why.
psring sweep bench/sweeps/demo.yaml --out results/demo "$@" || [ $? -eq 1 ]
psring report results/demo
