#!/usr/bin/env bash
# Build Horovod from its PyPI sdist against this .venv's torch and the MPI that mpicxx belongs to, and install it.
# The wheel is kept outside the clone, keyed by all versions it depends on, so that a second set-up takes seconds.
# Called by scripts/setup.sh with the .venv active; PSRING_CACHE moves the cache.
set -euo pipefail

version=0.28.1
die() { echo "install_horovod: $*" >&2; exit 1; }

# Without a GPU here Horovod needs no CUDA, not even beside a CUDA build of torch: that is what PyPI has for Linux.
cuda=none
if nvidia-smi -L >/dev/null 2>&1; then cuda=$(python -c 'import torch; print(torch.version.cuda or "none")'); fi
mpi=$(echo $(mpirun --version | head -2) | tr -cs 'A-Za-z0-9.\n' '_')
libdir=$(mpicxx -show | tr ' ' '\n' | sed -n 's/^-L//p' | head -1)  # an MPI outside .venv is found where it was built with
case $libdir in "$VIRTUAL_ENV"/*) ;; *) mpi="$mpi$(echo "$libdir" | tr -cs 'A-Za-z0-9.\n' '_')_" ;; esac
key=$(python -c 'import sys, platform, torch; print(f"py{sys.version_info[0]}.{sys.version_info[1]}-{platform.machine()}-torch{torch.__version__}")')
key="horovod$version-$key-cuda$cuda-$mpi$(mpicxx --version | head -1 | tr -cs 'A-Za-z0-9.\n' '_')-1"
cache="${PSRING_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/psring}/wheels/$key"

if ! ls "$cache"/horovod-*.whl >/dev/null 2>&1; then
  echo "Building Horovod $version (5 to 10 minutes on 2 cores, once per machine) ..."
  for tool in g++ make; do
    command -v $tool >/dev/null || die "$tool is missing; install a C++ compiler (Debian: apt-get install build-essential)"
  done
  header=$(python -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h
  [ -f "$header" ] || die "Python.h is missing; install Python's headers (Debian: apt-get install python3-dev)"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  pip install -q 'setuptools<80' wheel 'cmake<4' packaging cloudpickle psutil pyyaml 2>"$work/log" ||
    die "pip could not install Horovod's build tools: $(tail -1 "$work/log")"
  pip download -q --no-deps --no-binary horovod --no-build-isolation -d "$work" "horovod==$version" 2>"$work/log" ||
    die "pip could not fetch horovod==$version: $(tail -1 "$work/log")"
  tar -xf "$work/horovod-$version.tar.gz" -C "$work"
  cd "$work/horovod-$version"
  # Horovod pins C++14; torch's headers need C++17 since 2.1 and C++20 since 2.9.
  # The rpath finds an MPI that lives in the same .venv, wherever the next clone puts it.
  sed -i 's|^set(CMAKE_CXX_STANDARD 14)|set(CMAKE_CXX_STANDARD 20)\nset(CMAKE_BUILD_RPATH "$ORIGIN/../../../..")|' CMakeLists.txt
  sed -i 's|set(CMAKE_CXX_STANDARD 14)|set(CMAKE_CXX_STANDARD 20)|' horovod/torch/CMakeLists.txt
  if [ "$cuda" = none ]; then  # else an nvcc on PATH is enough for it to want CUDA
    sed -i 's|torch.version.cuda is not None|False|' cmake/Modules/FindPytorch.cmake
  else
    command -v nvcc >/dev/null || die "nvcc is missing; install the CUDA toolkit $cuda to build Horovod for this GPU"
    export HOROVOD_GPU_OPERATIONS=NCCL
    HOROVOD_NCCL_HOME=${HOROVOD_NCCL_HOME:-$(python -c 'import nvidia.nccl, os; print(os.path.dirname(list(nvidia.nccl.__path__)[0] + "/"))')} ||
      die "NCCL is missing; install libnccl-dev or set HOROVOD_NCCL_HOME to the folder that holds its include and lib"
    export HOROVOD_NCCL_HOME
  fi
  export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_MPI=1 HOROVOD_WITH_GLOO=1
  pip wheel -v --no-deps --no-build-isolation -w "$work/wheel" . >"$work/log" 2>&1 &
  build=$!
  start=$SECONDS
  while kill -0 $build 2>/dev/null; do
    sleep 15
    percent=$(grep -o '^ *\[ *[0-9]*%\]' "$work/log" | tail -1 | tr -d ' []' || true)
    echo "  ... $((SECONDS - start)) s, ${percent:-configuring}"
  done
  if ! wait $build; then
    mkdir -p "$cache" && cp "$work/log" "$cache/build.log"
    die "the build failed ($(grep -iE 'error' "$work/log" | head -1 | cut -c1-160)); the whole log is $cache/build.log"
  fi
  mkdir -p "$cache"
  cp "$work"/wheel/horovod-*.whl "$cache/"
  cd - >/dev/null
fi
pip install -q --force-reinstall --no-deps "$cache"/horovod-*.whl
