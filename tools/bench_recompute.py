"""What recomputation saves and costs: peak memory and speed of a training step under each policy.

    python tools/bench_recompute.py --out docs/benchmarks/recompute-cpu.json

The 25M-parameter model on one long row a step. Policies take turns, each in a process of its own; memory is the peak
over what the process held before its first step (resident on a CPU, allocated on a GPU), less gradients and optimizer
state, which every policy has. On a CPU, times are the processor's: the clock tells of whoever else is on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from internevo.config.presets import model_preset
from internevo.config.schema import StageConfig, TrainConfig
from internevo.data.batch import Batch
from internevo.model.budget import activation_bytes
from internevo.model.initial import initial_model
from internevo.model.recompute import Policy
from internevo.parallel.world import World
from internevo.train.build import make_engine

CHOICES = ("none", "selective", "full", "budget, half of none")


def work(choice: str, seq_len: int, steps: int) -> dict[str, Any]:
    """Peak memory in bytes, and the median seconds of forward and backward by the clock and of the processor."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = model_preset("tiny-25m")
    precision = "bf16" if device.type == "cuda" else "fp32"
    each = seq_len * activation_bytes(config, Policy.none, 2 if precision == "bf16" else 4)
    train = TrainConfig(seq_len=seq_len, batch_tokens=seq_len, steps=1, precision=precision)
    train.recompute = choice.split(",")[0]
    if choice.startswith("budget"):
        train.activation_gib = config.layers * each / 2 / 2**30
    engine = make_engine(StageConfig(model=config, train=train), World.alone(device), initial_model(config, device, 0))
    tokens = np.random.default_rng(0).integers(0, config.vocab, (1, seq_len + 1))
    positions, counts = np.arange(seq_len)[None], (((seq_len,),), (seq_len,), ("text",))
    batch = Batch(tokens[:, :-1].copy(), tokens[:, 1:].copy(), positions, *counts, seq_len, slice(0, 1))
    staged = engine.stage_batch(batch)
    engine.forward_backward(staged)  # gradients are there
    peak = _Peak(device)
    seconds = []
    for _ in range(steps):
        start, used = time.perf_counter(), time.process_time()
        engine.forward_backward(staged).item()
        seconds.append((time.perf_counter() - start, time.process_time() - used))
    wall, processor = (statistics.median(values) for values in zip(*seconds, strict=True))
    return {"peak": peak.bytes(), "seconds": wall, "processor_seconds": processor}


class _Peak:
    """The most memory taken since it was made, over what was held then."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.before = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize()
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

    def bytes(self) -> int:
        if self.cuda:
            return torch.cuda.max_memory_allocated() - self.before
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024 - self.before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the raw numbers here as JSON")
    parser.add_argument("--work", choices=CHOICES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(work(args.work, args.seq_len, args.steps)))
        return
    found: dict[str, list[dict[str, Any]]] = {choice: [] for choice in CHOICES}
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes back at once
    for _ in range(args.rounds):
        for choice, results in found.items():
            sizes = ["--seq-len", str(args.seq_len), "--steps", str(args.steps)]
            command = [sys.executable, __file__, "--work", choice, *sizes]
            done = subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", check=True, env=environment
            )
            results.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'recompute':24}{'peak MiB':>10}{'of none':>9}{'time of none':>14}")
    for choice, results in found.items():
        peak = statistics.median(one["peak"] for one in results)
        pairs = zip(results, found["none"], strict=True)
        key = "seconds" if torch.cuda.is_available() else "processor_seconds"
        slower = statistics.median(one[key] / none[key] for one, none in pairs)
        first = statistics.median(one["peak"] for one in found["none"])
        print(f"{choice:24}{peak / 2**20:10,.0f}{peak / first:9.2f}{slower:14.2f}", flush=True)
    if args.out:
        facts = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
        facts |= {"seq_len": args.seq_len, "steps": args.steps, "rounds": args.rounds}
        args.out.write_text(json.dumps({**facts, "results": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
