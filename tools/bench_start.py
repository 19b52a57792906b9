"""How long a run takes to its first step, and what share of a step it waits for data.

    python tools/bench_start.py --out docs/benchmarks/start-cpu.json

Runs `internevo train configs/tiny.yaml` as a person would, on token stores made of Python's standard library, and
reads the answer from its `metrics.jsonl`: the time from the command to the first line (which is written after the
first evaluation and the first step), that step's own length, and for the steps after it the share spent waiting for
data. Then the loader alone, as fast as it can: real tokens per second on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from internevo.config.schema import SourceConfig
from internevo.data.loader import Loader
from internevo.data.mixing import Plan
from internevo.monitor.environment import capture
from internevo.monitor.metrics import read_metrics
from internevo.tokens.prepare import prepare
from internevo.tokens.train_tokenizer import train_tokenizer
from internevo.train.build import choose_device

CONFIG = Path(__file__).parents[1] / "configs" / "tiny.yaml"
LIBRARY = Path(os.__file__).parent


def make_data(folder: Path) -> None:
    """The tokenizer and the store that the config names, in `folder`."""
    sources = sorted(LIBRARY.glob("*.py"))
    train_tokenizer((path.read_text(encoding="utf-8") for path in sources), folder / "tokenizer.model", 8192)
    prepare(sources, folder / "tokens" / "mine", folder / "tokenizer.model", held_out=0.05)


def first_step(folder: Path, steps: int) -> dict[str, float]:
    """Run the command in `folder`; seconds to the first step, and the shares after it."""
    lengths = [f"stages.base.train.steps={steps}", "stages.long.train.steps=3", "stages.enhance.train.steps=3"]
    start = time.time()
    with (folder / "out.txt").open("w", encoding="utf-8") as out:
        command = [
            sys.executable,
            "-m",
            "internevo",
            "train",
            str(CONFIG),
            "data.eval_tokens=0",
            "schedule.warmup=0",
            *lengths,
        ]
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
    metrics = folder / "runs" / "tiny" / "metrics.jsonl"
    while not read_metrics(metrics):
        if process.poll() is not None:
            raise SystemExit((folder / "out.txt").read_text(encoding="utf-8"))
        time.sleep(0.01)
    to_first = time.time() - start
    process.wait()
    lines = read_metrics(metrics)
    after = lines[1:]
    return {
        "seconds_to_first_step_done": to_first,
        "seconds_of_first_step": lines[0]["step_s"],
        "median_step_s": statistics.median(line["step_s"] for line in after),
        "data_share_of_all_steps": sum(line["data_s"] for line in after) / sum(line["step_s"] for line in after),
        "largest_data_share_of_a_step": max(line["data_s"] / line["step_s"] for line in after),
    }


def loader_rate(folder: Path, packing: str) -> float:
    """Real tokens per second of the loader alone."""
    source = SourceConfig(str(folder / "tokens" / "mine"))
    with Loader(Plan.constant([source], seq_len=4096, rows=64, packing=packing), seed=0) as loader:
        loader.next()
        start, tokens = time.perf_counter(), 0
        while time.perf_counter() - start < 3:
            tokens += sum(loader.next().real_tokens)
        return tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="steps of the first stage")
    parser.add_argument("--out", type=Path, help="write the raw numbers here as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        result: dict[str, object] = dict(first_step(folder, args.steps))
        result["loader_tokens_per_s"] = {kind: loader_rate(folder, kind) for kind in ("best_fit", "concat")}
    print(json.dumps(result, indent=1))
    if args.out:
        facts = capture(choose_device("auto"), ["tools/bench_start.py", "--steps", str(args.steps)])
        kept = ("internevo", "python", "torch", "device", "cpu_count", "threads", "command")
        args.out.write_text(
            json.dumps({**{key: facts[key] for key in kept}, **result}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
