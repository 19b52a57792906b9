"""Small real runs for tests: a store of random documents, a three-stage config, and the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from internevo.monitor.metrics import read_metrics
from internevo.tokens.store_writer import TokenStoreWriter


def write_store(folder: Path, documents: int, seed: int, vocab: int = 512) -> Path:
    """A prepared folder of documents that a model can learn something from."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for name, count in (("train", documents), ("heldout", 8)):
        with TokenStoreWriter(folder / name, np.uint16) as writer:
            for _ in range(count):
                phrase = 3 + rng.geometric(0.05, rng.integers(2, 12)) % (vocab - 3)  # some tokens are frequent
                body = np.resize(phrase, rng.integers(1, 200))
                writer.append(np.concatenate(([1], body, [2])))
    return folder


def write_config(folder: Path, **changes: Any) -> Path:
    """A three-stage run of the tiny model that takes a few seconds."""
    for number, name in enumerate(("web", "code")):
        if not (folder / "tokens" / name).exists():
            write_store(folder / "tokens" / name, 400, number)
    sources = [
        {"path": str(folder / "tokens" / "web"), "weight": 0.7},
        {"path": str(folder / "tokens" / "code"), "weight": 0.3},
    ]
    tree = {
        "name": "run",
        "runs": str(folder / "runs"),
        "model": {"preset": "tiny"},
        "optimizer": {"lr": 3e-3},
        "schedule": {"warmup": 2},
        "train": {"seq_len": 64, "batch_tokens": 512, "micro_batch": 4, "precision": "fp32", "device": "cpu"},
        "checkpoint": {"every": 3},
        "data": {"sources": sources, "eval_tokens": 500},
        "stages": [
            {"name": "base", "train": {"steps": 8}},
            {
                "name": "long",
                "train": {"steps": 5, "seq_len": 256, "micro_batch": 1},
                "model": {"rope": {"base": 1e5}},
                "data": {"sources": sources[::-1], "packing": "concat"},
            },
            {
                "name": "enhance",
                "train": {"steps": 4},
                "schedule": {"name": "linear"},
                "optimizer": {"lr": 1e-3},
            },
        ],
        **changes,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """The real command, in a process of its own."""
    command = [sys.executable, "-m", "internevo", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONFAULTHANDLER": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the command; its output. A command that hangs fails the test, with the stacks of its ranks."""
    try:
        return process.communicate(timeout=300)[0]
    except subprocess.TimeoutExpired:
        subprocess.run(["pkill", "-ABRT", "-P", str(process.pid)], check=False)
        process.send_signal(signal.SIGABRT)
        raise AssertionError(f"the command hangs:\n{process.communicate(timeout=30)[0]}") from None


def steps(run: Path) -> list[dict[str, Any]]:
    """What a run trained, without what depends on the clock or the machine."""
    timed = ("step_s", "data_s", "tokens_per_s", "tokens_per_s_per_gpu", "mfu", "mfu_full", "memory_gib")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(run / "metrics.jsonl")]


def evals(run: Path) -> list[dict[str, Any]]:
    """The run's evaluations."""
    return read_metrics(run / "evals.jsonl")


def last_state(run: Path) -> dict[str, Any]:
    """state.json of the newest checkpoint."""
    newest = max((run / "checkpoints").glob("step-??????"))
    return json.loads((newest / "state.json").read_text())
