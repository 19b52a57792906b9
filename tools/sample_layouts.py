"""A campaign: random combinations of model, layout and settings, each compared with float64 training on one process.

    python tools/sample_layouts.py --count 500 --seed 0 --out build/layouts.jsonl
    python tools/sample_layouts.py --summary build/layouts.jsonl --out docs/benchmarks/sample-layouts.json
    python tools/sample_layouts.py --only 17

A combination is a number: `--only` runs that one again. Each gets a line in `--out`, with its configuration and its
errors: `exact`, `refused` by the check of the configuration, `wrong`, `failed` or `hang`. Lines that are there already
are not run again, so the same command resumes. What is drawn, and what is compared, is in tests/parallel/sampling.py.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.parallel.ranks import RankPool
from tests.parallel.sampling import ALLOWED, STEPS, combination, try_combination, write_stores

JOBS_OF_A_POOL = {1: 40, 2: 40, 4: 40, 8: 1}
"""By its size, combinations that a pool runs before a new one takes its place: groups and memory stay until then."""
TIMEOUT = 240.0
"""Seconds after which a combination hangs."""
FEATURES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "one kv head": lambda c: c["model"]["attention"]["kv_heads"] == 1,
    "tied head": lambda c: c["model"]["tied"],
    "qkv bias": lambda c: c["model"]["attention"]["bias"],
    "norms of heads": lambda c: c["model"]["attention"]["qk_norm"],
    "head_dim of its own": lambda c: "head_dim" in c["model"]["attention"],
    "width scaling": lambda c: "width_base" in c["model"],
    "rope scaling": lambda c: c["model"]["rope"]["scaling"]["kind"] != "none",
    "odd vocabulary or feed-forward": lambda c: bool(
        c["model"]["vocab"] % 2 or c["model"]["feed_forward"]["width"] % 2
    ),
    "masked labels": lambda c: {"path": "masked"} in c["data"]["sources"],
    "batch ramp": lambda c: "batch_ramp" in c["train"],
    "Muon": lambda c: c["optimizer"]["name"] == "muon",
    "bf16": lambda c: c["train"]["precision"] == "bf16",
    "recomputation": lambda c: c["train"]["recompute"] != "none",
    "tensor": lambda c: c["parallel"]["tensor"] > 1,
    "context": lambda c: c["parallel"]["context"]["size"] > 1,
    "1f1b": lambda c: pipelined(c, "1f1b"),
    "interleaved": lambda c: pipelined(c, "interleaved"),
    "interleaved, zero 3": lambda c: pipelined(c, "interleaved") and c["parallel"]["zero"]["stage"] == 3,
    "zbv": lambda c: pipelined(c, "zbv"),
    "zero 3": lambda c: c["parallel"]["zero"]["stage"] == 3,
    "hybrid zero": lambda c: c["parallel"]["zero"].get("shard", -1) > 1,
    "DeepSpeed": lambda c: "engine" in c["parallel"]["zero"],
}


def pipelined(config: dict[str, Any], schedule: str) -> bool:
    """Whether it has a pipeline with this schedule."""
    pipeline = config["parallel"]["pipeline"]
    return bool(pipeline["size"] > 1 and pipeline["schedule"] == schedule)


class Pools:
    """A pool of ranks for each size of world, new where one has died or is old."""

    def __init__(self) -> None:
        self._pools: dict[int, RankPool] = {}
        self._jobs: Counter[int] = Counter()

    def __call__(self, world: int) -> RankPool:
        if world in self._pools and not self._pools[world].alive:
            self._pools.pop(world).close()
        if world not in self._pools:
            self._pools[world], self._jobs[world] = RankPool(world, TIMEOUT), 0
        self._jobs[world] += 1
        return self._pools[world]

    def end_old(self) -> None:
        """End pools that have run long enough."""
        for world in [world for world in self._pools if self._jobs[world] >= JOBS_OF_A_POOL[world]]:
            self._pools.pop(world).close()

    def close(self) -> None:
        """End all ranks."""
        for pool in self._pools.values():
            pool.close()


def run(number: int, stores: Path, folder: Path, pools: Pools) -> dict[str, Any]:
    """The line of one combination."""
    one, begun = combination(number), time.monotonic()
    outcome = try_combination(one, stores, folder / str(number), pools)
    return {
        "number": number,
        "kind": outcome.kind,
        "why": outcome.why,
        "errors": outcome.errors,
        "where": outcome.where,
        "seconds": round(time.monotonic() - begun, 2),
        "world": one.world,
        "continued": one.continued,
        "config": one.tree,
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a campaign. The last one may be cut where the tool was killed."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, the worst error of each kind, what was refused, and all that was neither."""
    exact = [line for line in lines if line["kind"] == "exact"]
    refused = [line["why"].removeprefix("config.yaml:\n  ") for line in lines if line["kind"] == "refused"]
    return {
        "torch": torch.__version__,
        "steps of each": STEPS,
        "combinations": len(lines),
        "kinds": dict(Counter(line["kind"] for line in lines)),
        "exact by ranks": dict(sorted(Counter(str(line["world"]) for line in exact).items())),
        "exact by feature": {
            **{name: sum(has(line["config"]) for line in exact) for name, has in FEATURES.items()},
            "continued, with norms and biases disturbed": sum(line["continued"] for line in exact),
        },
        "errors": {
            precision: {what: errors_of(exact, precision, what, allowed) for what, allowed in limits.items()}
            for precision, limits in ALLOWED.items()
        },
        "refused": dict(Counter(re.sub(r"\b\d[\d,]*\b", "N", why) for why in refused).most_common()),
        "neither": [{key: line[key] for key in ("number", "kind", "why")} for line in lines if is_bad(line)],
    }


def errors_of(lines: list[dict[str, Any]], precision: str, what: str, allowed: float) -> dict[str, float]:
    """The median and the largest of one thing's errors."""
    chosen = [line["errors"] for line in lines if line["config"]["train"]["precision"] == precision]
    found = sorted(errors[what] for errors in chosen if what in errors)
    if not found:
        return {"allowed": allowed}
    median, worst = (float(f"{one:.2g}") for one in (found[len(found) // 2], found[-1]))
    return {"compared": len(found), "median": median, "largest": worst, "allowed": allowed}


def is_bad(line: dict[str, Any]) -> bool:
    """Whether it is a finding."""
    return line["kind"] not in ("exact", "refused")


def main() -> int:
    """Run, and return 1 when anything was wrong, failed or hung."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="combinations to run")
    parser.add_argument("--seed", type=int, default=0, help="number of the first combination")
    parser.add_argument("--only", type=int, help="run the combination of this number alone, and print its line")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="run nothing; sum up the lines of FILE")
    parser.add_argument("--out", type=Path, help="where lines, or the summary, are written")
    asked = parser.parse_args()
    if asked.summary is not None:
        told = summary(read(asked.summary))
        if asked.out is not None:
            asked.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(told, indent=1))
        return 1 if told["neither"] else 0
    torch.set_num_threads(1)
    numbers = [asked.only] if asked.only is not None else range(asked.seed, asked.seed + asked.count)
    done = {line["number"]: line for line in read(asked.out)} if asked.out is not None else {}
    pools = Pools()
    try:
        with tempfile.TemporaryDirectory() as folder:
            stores = write_stores(Path(folder) / "stores")
            for number in numbers:
                if number in done:
                    continue
                done[number] = line = run(number, stores, Path(folder), pools)
                pools.end_old()
                if asked.out is not None:
                    with asked.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                worst = ", ".join(f"{what} {error:.1e}" for what, error in line["errors"].items())
                print(number, line["kind"], f"{line['seconds']} s", line["why"].strip() or worst, flush=True)
    finally:
        pools.close()
    lines = [done[number] for number in numbers]
    print(json.dumps(lines[0] if asked.only is not None else summary(lines), indent=1))
    return 1 if any(map(is_bad, lines)) else 0


if __name__ == "__main__":
    sys.exit(main())
