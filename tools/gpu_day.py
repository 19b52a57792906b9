"""What is to be learned from the first minutes on a GPU, in order of worth, written down as it is found.

    python tools/gpu_day.py --minutes 9
    python tools/gpu_day.py --show docs/benchmarks/gpu-day.jsonl

Facts of the machine; every kernel beside float64; a step of each engine beside the CPU's; how fast the pieces are; the
benchmark's cases beside bare torch and transformers; FP8, recomputation, memory, where a step's time goes; tests/gpu.
Each part is a process of its own with a limit of time, so a crash, a hang or a lack of memory costs one check. Each
finding is a line of JSON that is on the disk before the next check begins: the day may be cut at any moment. Another
day is added to the same file.

Needs no network and no installation: torch, numpy, PyYAML and transformers are enough. What else is of use and is not
there can be carried as wheels: `--wheels` fetches them into build/wheels where there is a network.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
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
    chosen = [one for one in parts(args.small) if not args.parts or one.name.startswith(tuple(args.parts))]
    out = args.out / "gpu-day.jsonl" if args.out.is_dir() else args.out
    options = {"out": str(out.absolute()), "run": time.strftime("%Y%m%d-%H%M%S-") + str(os.getpid())}
    records = Records(Path(options["out"]), options["run"])
    records.add("day", "begin", "measured", f"{args.minutes:g} minutes, commit {_commit()}", command=sys.argv)
    found, told = packages.provide(ROOT)
    records.add("day", "packages", "measured", told)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), found, os.environ.get("PYTHONPATH", "")]))
    for end in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(end, _leave)
    try:
        Day({**options, "small": args.small}, 60 * args.minutes - GRACE, environment).run(chosen)
    except KeyboardInterrupt:
        return 130
    finally:
        records.add("day", "end", "measured")
        print(table.show(read(out)), flush=True)
    return 0


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
