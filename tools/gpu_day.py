"""What is to be learned from the first minutes on a GPU, in order of worth, written down as it is found.

    python tools/gpu_day.py --minutes 9
    python tools/gpu_day.py --show docs/benchmarks/gpu-day.jsonl

Facts of the machine; every kernel beside float64; a step of each engine beside the CPU's; how fast the pieces are; the
benchmark's cases beside bare torch and transformers; FP8, recomputation, memory, where a step's time goes; tests/gpu.
Each part is a process of its own with a limit of time, so a crash, a hang or a lack of memory costs one check. Each
finding is a line of JSON that is on the disk before the next check begins: the day may be cut at any moment. Another
day is added to the same file.

Needs no network and no installation: torch, numpy, PyYAML and transformers are enough. What else is of use and is not
there can be carried as wheels: `--wheels` fetches them into gpu-wheels where there is a network.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from gpu_checks import packages, table
from gpu_checks.parts import parts
from gpu_checks.record import Records, read
from gpu_checks.watch import Day
from gpu_checks.work import work

ROOT = Path(__file__).parents[1]
GRACE = 6
"""Seconds kept for the end."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="all of it takes no longer")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks/gpu-day.jsonl", help="where findings go")
    parser.add_argument("--parts", nargs="+", help="only those whose names begin so")
    parser.add_argument("--small", action="store_true", help="tiny models and short rows, to try the tool itself")
    parser.add_argument(
        "--patience", type=float, default=1, help="multiply the time limits of parts and checks by this"
    )
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the last day in a file of findings")
    parser.add_argument("--wheels", action="store_true", help="fetch the packages to carry, and end")
    parser.add_argument("--work", help=argparse.SUPPRESS)  # the process of a part
    args = parser.parse_args()
    if args.work:
        return work(json.loads(args.work))
    if args.wheels:
        return packages.fetch(ROOT)
    if args.show:
        print(table.show(read(args.show)))
        return 0
    return day(args)


def day(args: argparse.Namespace) -> int:
    """Run the parts and print what was found."""
    ends = time.monotonic() + 60 * args.minutes - GRACE
    chosen = [one for one in parts(args.small) if not args.parts or one.name.startswith(tuple(args.parts))]
    slow = args.patience
    chosen = [replace(one, limit=slow * one.limit, check=slow * one.check) for one in chosen]
    out = (args.out / "gpu-day.jsonl" if args.out.is_dir() else args.out).absolute()
    records = Records(out, time.strftime("%Y%m%d-%H%M%S-") + str(os.getpid()))
    records.add("day", "begin", "measured", f"{args.minutes:g} minutes, commit {_commit()}", command=sys.argv)
    if not args.small and not _has_gpu():
        records.add("day", "end", "not run", "torch sees no GPU here; --small tries the tool itself")
        return 2
    site, told = packages.provide(ROOT)
    records.add("day", "packages", "measured", told)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        Day(records, args.small, ends, _environment(site)).run(chosen)
    finally:
        records.add("day", "end", "measured")
        print(table.show(read(out)), flush=True)
    return 0


def _environment(site: str) -> dict[str, str]:
    """That of the parts: they import from the root of the repository, and from the packages that were carried."""
    path = [str(ROOT), site, os.environ.get("PYTHONPATH", "")]
    changed = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(filter(None, path))}
    if hasattr(ctypes.CDLL(None), "nogpu_trace"):
        changed["TORCH_CUDNN_SDPA_DEPRIORITIZED"] = "1"  # the driver that does nothing has no cuDNN
    return {**os.environ, **changed}


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _has_gpu() -> bool:
    """Whether torch sees one. In another process: this one loads no torch, and lives on when CUDA does not."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    try:
        return subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
