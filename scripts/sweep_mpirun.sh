#!/usr/bin/env bash
# The plain mpirun commands of a small sweep, for a cluster of your own.
#   scripts/sweep_mpirun.sh OUT [HOSTFILE] [INTERFACE]
# HOSTFILE: one "host slots=1" line per node. INTERFACE: eth0, or a network such as 10.0.0.0/24.
# Every host needs this checkout and its .venv at the same path. Each run is one folder below OUT; psring report OUT compares them.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?give the folder for the results} hostfile=${2:-} interface=${3:-}
die() { echo "sweep_mpirun: $*" >&2; exit 2; }
case $out in -*) die "$out is no folder; write scripts/sweep_mpirun.sh OUT [HOSTFILE] [INTERFACE]" ;; esac
[ -z "$hostfile" ] || [ -f "$hostfile" ] || die "there is no host file $hostfile"
for number in ${WORKERS:-1} ${SERVERS:-1}; do
  [[ $number =~ ^[1-9][0-9]{0,4}$ ]] || die "$number is no number of ranks; write WORKERS='1 2 4'"
done
. .venv/bin/activate
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# The same for both topologies: equal binding and transport.
export OMPI_MCA_pml=ob1 OMPI_MCA_btl=^openib
flags=(--bind-to none --map-by slot --oversubscribe)
if [ -n "$hostfile" ]; then flags+=(--hostfile "$hostfile"); fi
if [ -n "$interface" ]; then flags+=(--mca btl_tcp_if_include "$interface" --mca oob_tcp_if_include "$interface"); fi
common=(--model gpt-micro --block-size 64 --batch-size 8 --steps 20 --warmup-steps 5)

for workers in ${WORKERS:-1 2}; do
  for precision in ${PRECISIONS:-fp32}; do
    mpirun -n "$workers" "${flags[@]}" psring run --strategy ring_allreduce \
      "${common[@]}" --precision "$precision" --out "$out/ring-$workers-$precision"
    for servers in ${SERVERS:-1}; do
      mpirun -n $((workers + servers)) "${flags[@]}" psring run --strategy parameter_server --num-servers "$servers" \
        "${common[@]}" --precision "$precision" --out "$out/server-$workers+$servers-$precision"
    done
  done
done
echo "the runs are in $out; psring report $out compares them"
