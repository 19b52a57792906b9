"""What layouts send, counted beside the formula that theory gives, and what a step costs beside one rank.

    python tools/bench_parallel.py --out docs/benchmarks/parallel-cpu.json

Calls and bytes of every collective are counted in one training step of one rank (gloo, CPU), by watching
torch.distributed's operators; nothing is estimated. A count is the size of the larger side of the call: what an
all-gather gives, what a reduce-scatter takes, what an all-reduce, an all-to-all or a send holds. The formulas are in
`expected`; control messages (token fingerprints, losses, the gradient norm) are what they leave out.

Times are of whole steps without accumulation (a pipeline has its micro-batches), layout and one rank in turns, on a
machine where all ranks share the cores: the ratio is to the time that one rank takes for the same step. The model is
that of the layout tests (4 blocks, 64 wide) on 8 rows of 256 tokens: what is seen is overhead, not speed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from internevo.config.schema import SourceConfig, StageConfig
from internevo.data.loader import Loader
from internevo.data.mixing import Plan
from internevo.parallel.world import World
from internevo.train.step import train_step
from tests.parallel.jobs import ALONE, LR, ROWS, SEQ_LEN, engine_of, stage_of, write_documents
from tests.parallel.ranks import RankPool

KINDS = {
    "all_gather": "_allgather_base_",
    "reduce_scatter": "_reduce_scatter_base_",
    "all_reduce": "allreduce_",
    "all_to_all": "alltoall_base_",
    "send": "send",
}
TIMED_SEQ_LEN = 256
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "dp2, zero 1": (2, {"zero": 1}),
    "dp2, zero 2": (2, {"zero": 2}),
    "dp2, zero 3": (2, {"zero": 3}),
    "hybrid zero 1, 2x2": (4, {"zero": 1, "shard": 2}),
    "tp2": (2, {"tensor": 2}),
    "tp2, no sequence parallelism": (2, {"tensor": 2, "sequence": False}),
    "ulysses2": (2, {"context": 2, "ulysses": 2}),
    "ring2": (2, {"context": 2, "ulysses": 1}),
    "pp2, 1f1b": (2, {"pipeline": 2}),
}


class Counting(TorchDispatchMode):
    """Counts the calls and bytes of collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name if hasattr(func, "_schema") else ""
        if name.startswith("c10d::"):
            for kind, operator in KINDS.items():
                if name == f"c10d::{operator}":
                    self.calls[kind] += 1
                    self.bytes[kind] += max(_bytes(arg) for arg in args[:2])
        return func(*args, **(kwargs or {}))


def _bytes(value: Any) -> int:
    tensors = value if isinstance(value, list | tuple) else [value]
    return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))


def counted(world: World, changes: dict[str, Any], store: Path) -> tuple[dict[str, int], dict[str, int]]:
    """(calls, bytes) of the second step, on this rank."""
    engine = engine_of(stage_of(changes), world)
    with _loader(store, engine.part, SEQ_LEN) as loader:
        train_step(engine, engine.stage_batch(loader.next()), LR)
        batch = loader.next()
        with Counting() as counting:
            train_step(engine, engine.stage_batch(batch), LR)
    return dict(counting.calls), dict(counting.bytes)


def timed(world: World, changes: dict[str, Any], store: Path, steps: int) -> list[float]:
    """Seconds of each step after the first two."""
    stage = stage_of(changes)
    engine = engine_of(stage, world)
    seconds = []
    with _loader(store, engine.part, stage.train.seq_len) as loader:
        for _ in range(steps + 2):
            batch = loader.next()
            start = time.perf_counter()
            train_step(engine, engine.stage_batch(batch), LR)
            seconds.append(time.perf_counter() - start)
    return seconds[2:]


def _loader(store: Path, part: Any, seq_len: int) -> Loader:
    source = SourceConfig(str(store), name="web")
    return Loader(Plan.constant([source], seq_len=seq_len, rows=ROWS, packing="best_fit"), seed=1, part=part)


def expected(changes: dict[str, Any], world: int) -> dict[str, float]:
    """Bytes by kind that theory gives for one step of one rank in fp32."""
    stage: StageConfig = stage_of(changes)
    model, tensor = stage.model, stage.parallel.tensor
    shape = model.attention
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    matrices = model.hidden * (2 * q + 2 * kv) + 3 * model.hidden * model.feed_forward.width
    norms, ends = 2 * model.hidden, 2 * model.vocab * model.hidden
    blocks = model.layers
    pipeline, context = stage.parallel.pipeline.size, stage.parallel.context.size
    data = world // (pipeline * context * tensor)
    micro = ROWS // data
    tokens = SEQ_LEN // context
    per = 4
    total: Counter[str] = Counter()
    shard = stage.parallel.zero.shard if stage.parallel.zero.shard > 0 else data * context
    if data * context > 1:
        # weights and gradients of this rank, whole; a block's and the rest's
        block = per * (matrices / tensor + norms)
        rest = per * (ends / tensor + model.hidden)
        zero = stage.parallel.zero.stage
        # stage 3 gathers a block for the forward and again for the backward pass; the rest stays whole between them
        gathers = (2 * blocks * block + rest) * micro if zero == 3 else blocks * block + rest
        total["all_gather"] += gathers
        total["reduce_scatter"] += (blocks * block + rest) * (micro if zero >= 2 else 1)
        if shard < data * context:
            total["all_reduce"] += (blocks * block + rest) / shard
    stream = per * tokens * model.hidden  # the residual stream of a micro-batch
    if tensor > 1:
        # forward: to all and back, twice a block, then once for embedding and once for the head; backward the same
        passes = (4 * blocks + 2) * micro
        if stage.parallel.sequence:
            total["all_gather"] += passes * stream
            total["reduce_scatter"] += passes * stream
            total["all_reduce"] += (2 * blocks + 1) * per * model.hidden  # gradients of norms, once
        else:
            # the forward sums once where sequence parallelism gathers and scatters, and so does the backward
            total["all_reduce"] += passes * stream
        total["all_reduce"] += 3 * tokens * per * micro  # the loss: a maximum, then a sum and a logit a token
    if context > 1:
        ulysses = stage.parallel.context.ulysses
        if ulysses > 1:
            copies = max(1, ulysses // model.attention.kv_heads)
            total["all_to_all"] += 2 * blocks * micro * per * tokens * (2 * q + 2 * kv * copies)
        else:
            # forward: keys and values go to ring - 1 ranks; backward: again, and their gradients to all and home
            total["send"] += blocks * micro * per * tokens * 2 * kv * (2 * (context - 1) + context)
    if pipeline > 1:
        total["send"] += micro * stream  # rank 0 of two sends hidden states forward, rank 1 their gradients back
    return dict(total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="steps to time")
    parser.add_argument("--repeats", type=int, default=3, help="turns of layout and one rank")
    parser.add_argument("--only", nargs="*", help="these layouts only")
    parser.add_argument("--out", type=Path, help="write the raw numbers here as JSON")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = write_documents(Path(folder) / "documents")
        pools: dict[int, RankPool] = {}
        for name, (world, changes) in LAYOUTS.items():
            if args.only and name not in args.only:
                continue
            if world not in pools:
                pools[world] = RankPool(world)
            pool = pools[world]
            calls, sizes = pool.run(counted, changes, store)[0]
            theory = expected(changes, world)
            pipeline = changes.get("pipeline", 1)
            rows = ROWS * pipeline * changes.get("context", 1) * changes.get("tensor", 1) // world
            whole = {"micro_batch": rows if pipeline == 1 else 1, "seq_len": TIMED_SEQ_LEN}
            alone_changes = {"micro_batch": ROWS if pipeline == 1 else 1, "seq_len": TIMED_SEQ_LEN}
            ratios = []
            for _ in range(args.repeats):
                alone = statistics.median(timed(ALONE, alone_changes, store, args.steps))
                ratios.append(statistics.median(pool.run(timed, {**changes, **whole}, store, args.steps)[0]) / alone)
            results.append(
                {
                    "layout": name,
                    "ranks": world,
                    "calls": calls,
                    "bytes": sizes,
                    "theory_bytes": theory,
                    "step_time_over_one_rank": statistics.median(ratios),
                    "ratios": ratios,
                }
            )
            print(f"{name}: step time {statistics.median(ratios):.2f} of one rank's", flush=True)
            for kind in sorted(set(sizes) | set(theory)):
                counted_bytes, said = sizes.get(kind, 0), theory.get(kind, 0.0)
                off = f"{counted_bytes / said:.3f} of theory" if said else "control messages"
                print(f"  {kind:15}{calls.get(kind, 0):6} calls {counted_bytes:12,} bytes  {off}", flush=True)
        for pool in pools.values():
            pool.close()
    if args.out:
        facts = {"torch": torch.__version__, "backend": "gloo", "cores": os.cpu_count()}
        args.out.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
