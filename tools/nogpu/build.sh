#!/usr/bin/env bash
# Builds the driver for a Python environment that has torch's CUDA build: build.sh PYTHON FOLDER
set -euo pipefail
python=$1 out=$2 here=$(cd "$(dirname "$0")" && pwd)
include=$("$python" - <<'P'
import pathlib, sysconfig
print(next(p.parent for p in pathlib.Path(sysconfig.get_paths()["purelib"]).glob("nvidia/*/include/cuda.h")))
P
)
mkdir -p "$out"
"${CXX:-g++}" -std=c++17 -O1 -shared -fPIC -I "$include" "$here/nogpu.cpp" -o "$out/libcuda.so.1" -ldl
ln -sf libcuda.so.1 "$out/libcuda.so"
