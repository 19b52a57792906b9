"""What smaller numbers cost: the same model trained with less exact weights, moments and products.

    python tools/compare_precision.py --steps 1500 --out docs/benchmarks/precision-cpu.json

A byte-level model of a million parameters on Python's standard library, on the CPU, where FP8 is emulated. Every
variant sees the same batches from the same first weights; the last column is its held-out loss less that of fp32 state.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from internevo.config.presets import model_preset
from internevo.config.schema import ModelConfig, OptimizerConfig, StageConfig, TrainConfig
from internevo.data.batch import Batch
from internevo.optim.split_fp32 import REST, join, noise_like, round_by_chance
from internevo.parallel.layout import make_layout
from internevo.parallel.world import World
from internevo.train.engine import Engine, TorchEngine
from internevo.train.sequential import Sequential
from internevo.train.step import train_step

SEQ, ROWS, VOCAB = 256, 8, 256
CPU = torch.device("cpu")


class NoRest(TorchEngine):
    """bf16 weights with nothing behind them, rounded by chance or to the nearest after each update."""

    by_chance = True

    def update(self, loss: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        result = super().update(loss, lr)
        with torch.no_grad():
            for number, (name, high) in enumerate(self.parameters.items()):
                state = self.optimizers.state(name)
                if self.by_chance:
                    exact = join(high, state[REST]).flatten()
                    noise = noise_like(exact, state["step"], 1000 + number)
                    high.copy_(round_by_chance(exact, noise).view_as(high))
                state[REST].zero_()
        return result


class Nearest(NoRest):
    """Rounded to the nearest: small updates are lost."""

    by_chance = False


def variants() -> dict[str, Callable[[ModelConfig, int], Engine]]:
    """Every variant by its name: from the model's sizes and a seed to an engine."""

    def make(
        kind: type[TorchEngine], state: str = "fp32", fp8: str = "none", precision: str = "bf16"
    ) -> Callable[..., Engine]:
        def build(config: ModelConfig, seed: int) -> Engine:
            train = TrainConfig(
                precision=precision, fp8=fp8, seq_len=SEQ, batch_tokens=SEQ * ROWS, micro_batch=ROWS, steps=1
            )
            stage = StageConfig(model=config, train=train, optimizer=OptimizerConfig(state=state))
            stage.train.seed = seed
            return kind(stage, World.alone(CPU).mesh(make_layout(stage, 1)), Sequential)

        return build

    return {
        "fp32 state (state: fp32)": make(TorchEngine, "fp32"),
        "all in fp32": make(TorchEngine, "fp32", precision="fp32"),
        "split weights (state: split)": make(TorchEngine, "split"),
        "split weights, bf16 moments (state: bf16)": make(TorchEngine, "bf16"),
        "bf16 weights by chance, fp32 moments": make(NoRest, "split"),
        "bf16 weights by chance, bf16 moments": make(NoRest, "bf16"),
        "bf16 weights to the nearest, fp32 moments": make(Nearest, "split"),
        "fp8 tensorwise": make(TorchEngine, "fp32", fp8="tensorwise"),
        "fp8 rowwise": make(TorchEngine, "fp32", fp8="rowwise"),
    }


def read_bytes() -> np.ndarray:
    """Some megabytes of the standard library's source."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return np.frombuffer(b"".join(path.read_bytes() for path in files), np.uint8).astype(np.int64)


def make_batch(text: np.ndarray, rng: np.random.Generator) -> Batch:
    """Rows from random places."""
    starts = rng.integers(0, len(text) - SEQ - 1, ROWS)
    rows = np.stack([text[start : start + SEQ + 1] for start in starts])
    positions = np.tile(np.arange(SEQ), (ROWS, 1))
    counts = ((SEQ,),) * ROWS, (SEQ,) * ROWS, ("text",) * ROWS
    return Batch(rows[:, :-1].copy(), rows[:, 1:].copy(), positions, *counts, SEQ * ROWS, slice(0, ROWS))


def train(build: Callable[[ModelConfig, int], Engine], text: np.ndarray, steps: int, seed: int) -> tuple[float, float]:
    """The mean loss of the last tenth of the steps, and the held-out loss."""
    sizes = {
        "hidden": 128,
        "layers": 4,
        "vocab": VOCAB,
        "attention": {"heads": 4, "kv_heads": 2},
        "feed_forward": {"width": 384},
    }
    engine, rng = build(model_preset("tiny", **sizes), seed), np.random.default_rng(seed)
    held_out = text[-len(text) // 20 :]
    text = text[: -len(text) // 20]
    losses = []
    for number in range(steps):
        lr = 2e-3 * min(1.0, (number + 1) / 50) * (1 - 0.95 * number / steps)
        losses.append(train_step(engine, engine.stage_batch(make_batch(text, rng)), lr).loss)
    rng, found = np.random.default_rng(99), []
    for _ in range(30):
        found += [float(loss.mean()) for loss, _ in engine.losses(make_batch(held_out, rng))]
    return statistics.mean(losses[-steps // 10 :]), statistics.mean(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--variants", help="only those whose names have this in them; --out keeps the others it has")
    parser.add_argument("--out", type=Path, help="write the raw numbers here as JSON")
    args = parser.parse_args()
    text, settings = read_bytes(), {"steps": args.steps, "seeds": args.seeds, "tokens_per_step": SEQ * ROWS}
    results: dict[str, dict[str, Any]] = {}
    if args.variants and args.out and args.out.exists():
        before = json.loads(args.out.read_text(encoding="utf-8"))
        if any(before[key] != value for key, value in settings.items()):
            parser.error(f"{args.out} was made with other settings")
        results = {one["variant"]: one for one in before["results"]}
    print(f"{'variant':44}{'training':>10}{'held out':>10}{'more':>9}")
    for name, build in variants().items():
        if args.variants and args.variants not in name:
            continue
        start = time.perf_counter()
        runs = [train(build, text, args.steps, seed) for seed in range(args.seeds)]
        training, held_out = (statistics.mean(values) for values in zip(*runs, strict=True))
        record = {"variant": name, "runs": runs, "training": training, "held_out": held_out}
        results[name] = {**record, "seconds": time.perf_counter() - start}
        more = held_out - next(iter(results.values()))["held_out"]
        print(f"{name:44}{training:10.4f}{held_out:10.4f}{more:+9.4f}", flush=True)
        if args.out:
            facts = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
            raw = {**facts, **settings, "results": list(results.values())}
            args.out.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
