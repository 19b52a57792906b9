#!/usr/bin/env bash
# The wheel as a stranger gets it: built, installed into an empty environment, and the quickstart run from there.
#
#   tools/check_wheel.sh PYTHON FOLDER        PYTHON has the `build` package; FOLDER is made and left
set -euo pipefail
python=$(realpath --no-symlinks "$1")
mkdir -p "$2"
folder=$(realpath "$2")
root=$(cd "$(dirname "$0")/.." && pwd)

"$python" -m build --wheel --outdir "$folder/dist" "$root" > "$folder/build.log" 2>&1 || { tail -20 "$folder/build.log"; exit 1; }
"$python" -m venv "$folder/empty"
"$folder/empty/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$folder"/dist/*.whl
cd "$folder" # away from the checkout, whose package must not be found
"$folder/empty/bin/internevo" doctor
"$folder/empty/bin/internevo" quickstart --chat
"$folder/empty/bin/python" "$root/tools/check_quickstart.py" quickstart
