#!/usr/bin/env bash
# Test a sweep under Slurm on this machine: a controller and two slurmd in a temporary folder, stopped and removed at the
# end. Needs root and Debian's packages: apt-get install slurm-wlm libpmix-dev
# (Slurm loads PMIx by the name that only the -dev package has.)
set -euo pipefail
cd "$(dirname "$0")/.."
. .venv/bin/activate
die() { echo "try_slurm: $*" >&2; exit 1; }
command -v slurmctld slurmd sbatch srun >/dev/null || die "Slurm is missing; apt-get install slurm-wlm libpmix-dev"

work=$(mktemp -d /tmp/try_slurm.XXXX)
started=()
finish() {
  scancel --quiet --me || true
  sleep 1
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait
  rm -rf "$work"
}
trap finish EXIT
export SLURM_CONF=$work/slurm.conf
cat >"$SLURM_CONF" <<CONF
ClusterName=try
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
KillWait=5
SlurmctldPort=16817
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool-%n
TmpFS=$work/tmp-%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd-%n.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd-%n.log
SlurmdParameters=config_overrides
NodeName=s[0-1] NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=[16818-16819] CPUs=4
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
mkdir "$work"/{state,spool-s0,spool-s1,tmp-s0,tmp-s1}
slurmctld -D >"$work/out" 2>&1 & started+=($!)
for node in s0 s1; do slurmd -D -N $node >>"$work/out" 2>&1 & started+=($!); done
for _ in $(seq 30); do [ "$(sinfo -h -o %D -t idle 2>/dev/null)" = 2 ] && break; sleep 1; done
sinfo || die "Slurm did not come up: $(tail -1 "$work/slurmctld.log")"

cat >"$work/sweep.yaml" <<'YAML'
defaults: {model: gpt-nano, block_size: 32, batch_size: 4, steps: 10, warmup_steps: 2, check_equivalence: true}
grid:
  - {strategy: local}
  - {strategy: ring_allreduce, num_workers: 3, launcher: [srun, mpirun]}
  - {strategy: parameter_server, num_workers: 2, num_servers: 1, launcher: [srun, mpirun]}
  - {strategy: ddp, num_workers: 3, launcher: srun}
YAML
psring sweep "$work/sweep.yaml" --out "$work/out.d" --slurm "$work/job.sbatch"

echo "== cancelled half way, then submitted again"
job=$(sbatch --parsable -N 2 "$work/job.sbatch")
for _ in $(seq 60); do [ -s "$work/out.d/runs.jsonl" ] && break; sleep 1; done
scancel --batch --signal=TERM "$job"  # what --signal=B:TERM does before the time is up
while squeue -h -j "$job" 2>/dev/null | grep -q .; do sleep 1; done
echo "runs kept: $(wc -l <"$work/out.d/runs.jsonl")"
sbatch --wait -N 2 "$work/job.sbatch" || true
cat "$work/out.d.slurm.log"
! pgrep -f "bench.cli ranks $work" || die "ranks are left"
psring report "$work/out.d" >/dev/null
python - "$work/out.d" <<'PY'
import pathlib, sys
from bench import records
found = records.read(pathlib.Path(sys.argv[1]))
print(*sorted((r.config.launcher, r.config.strategy, r.config.world_size, r.status) for r in found), sep="\n")
raise SystemExit(len(found) != 6 or any(r.status != "ok" for r in found))
PY
echo "try_slurm: 6 runs under srun and mpirun, all ok"
