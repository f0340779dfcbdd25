#!/usr/bin/env bash
# The plain horovodrun (Gloo) commands of a small sweep, for a cluster of your own.
#   scripts/sweep_horovodrun.sh OUT [HOSTFILE] [INTERFACE]
# HOSTFILE: one "host slots=1" line per node, reached by ssh without a password. INTERFACE: eth0, say.
# horovodrun starts the ring only; the parameter server needs MPI: scripts/sweep_mpirun.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?give the folder for the results} hostfile=${2:-} interface=${3:-}
die() { echo "sweep_horovodrun: $*" >&2; exit 2; }
case $out in -*) die "$out is no folder; write scripts/sweep_horovodrun.sh OUT [HOSTFILE] [INTERFACE]" ;; esac
[ -z "$hostfile" ] || [ -f "$hostfile" ] || die "there is no host file $hostfile"
for number in ${WORKERS:-1} ${SERVERS:-1}; do
  [[ $number =~ ^[1-9][0-9]{0,4}$ ]] || die "$number is no number of ranks; write WORKERS='1 2 4'"
done
. .venv/bin/activate
export OMPI_MCA_pml=ob1 OMPI_MCA_btl=^openib  # as sweep_mpirun.sh: one environment, so that runs can be compared
common=(--model gpt-micro --block-size 64 --batch-size 8 --steps 20 --warmup-steps 5)

for workers in ${WORKERS:-1 2}; do
  hosts=(-H "localhost:$workers")
  if [ -n "$hostfile" ]; then hosts=(--hostfile "$hostfile"); fi
  if [ -n "$interface" ]; then hosts+=(--network-interfaces "$interface"); fi
  for precision in ${PRECISIONS:-fp32}; do
    horovodrun --gloo -np "$workers" "${hosts[@]}" psring run --strategy ring_allreduce \
      "${common[@]}" --precision "$precision" --out "$out/horovodrun-ring-$workers-$precision"
  done
done
echo "the runs are in $out; psring report $out compares them"
