#!/usr/bin/env bash
# To the edge and back, in less than 10 minutes on 2 cores: a parameter server with a fast link trains a GPT with workers on slow,
# unequal ones (emulated nodes); the trained model is made small in many ways; a report compares loss, size and speed.
#   scripts/edge.sh [DIR]        the results, results/edge by default; a new folder
# Workers train 20 steps alone between exchanges, and an exchange sends a byte per number: else the slowest link sets the pace.
# STEPS, DISTIL_STEPS and REPEATS make it shorter or longer.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-results/edge}
case $out in -*) echo "edge: $out is no folder; write scripts/edge.sh [DIR]" >&2; exit 2 ;; esac
for number in STEPS DISTIL_STEPS REPEATS; do
  [[ ${!number:-1} =~ ^[1-9][0-9]{0,5}$ ]] || { echo "edge: $number=${!number} is no number of at least 1" >&2; exit 2; }
done
[ ! -e "$out" ] || { echo "edge: $out exists; give another folder" >&2; exit 2; }
bash scripts/setup.sh
. .venv/bin/activate
mkdir -p "$(dirname "$out")"
model=$(mktemp -d)/gpt.pt
trap 'rm -rf "$(dirname "$model")"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 name="edge$$" steps=${STEPS:-400} model

psring cluster shell -- bash -c '
  set -e
  psring cluster up --name "$name" --num-nodes 4 --num-servers 1 --link "n0=20mbit,n1=40mbit,server=1gbit,*=80mbit"
  result=0
  psring cluster exec --name "$name" n0 -- mpirun -n 4 -H n0,n1,n2,n3 --bind-to none \
    psring run --strategy parameter_server --num-servers 1 --sync-every 20 --compression int8 \
    --model gpt-micro --batch-size 8 --steps "$steps" --warmup-steps 20 --max-foreign-cpu-share 1 \
    --save-parameters "$model" || result=$?
  psring cluster down --name "$name"
  exit $result
'
echo
echo "What it writes:"
psring generate "$model" --prompt "def " --max-tokens 300
echo
psring compress "$model" --out "$out" --steps "${DISTIL_STEPS:-200}" --repeats "${REPEATS:-6}"
