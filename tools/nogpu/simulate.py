"""A step of any config's stage, under any layout, on a GPU that does nothing: what it keeps in memory and waits for.

    tools/nogpu/run python -m tools.nogpu.simulate configs/internlm2-7b.yaml --stage long-32k --world 8 --gib 77

One rank is run, with the real engine at its real size; the others are torch's fake process group. Memory is that of
torch's real caching allocator, so a step that does not fit ends as it would on a GPU of `--gib`. Weights keep whatever
lies in memory: their values decide nothing here. A step has two micro-batches unless said otherwise; more take no more
memory.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

GIB = 2**30
MODES = ("build", "step")
_WAITED = "called a synchronizing CUDA operation"


def simulate(
    config: str | Path,
    stage: str | None = None,
    overrides: Sequence[str] = (),
    *,
    world: int = 1,
    rank: int = 0,
    gib: float = 139.8,
    micro_batches: int = 2,
    documents: str = "one",
    until: str = "step",
    timeout: float = 600.0,
) -> dict[str, Any]:
    """Run it in a process of its own. Sizes are in GiB.

    Of the `world` ranks, eight to a node, `rank` is run, on a GPU of `gib`. `documents`: `one` a row, or `many` of
    varying length. `until`: `build` the engine, or train a `step`, the second of which is looked at. The result has
    `build_peak` and `state`, then `peak`, `reserved`, `waits` (how the host would wait for the GPU, and how often) and
    `waits_at` (the lines of Python, where torch knows them), or what went wrong: `out_of_memory` or `failed`.
    """
    case = {name: value for name, value in locals().items() if name not in ("timeout", "gib")}
    case |= {"config": str(config), "overrides": list(overrides)}
    environment = os.environ | {"NOGPU_GIB": str(gib), "NOGPU_DEVICES": "8", "LOCAL_RANK": str(rank % 8)}
    command = [sys.executable, "-m", "tools.nogpu.simulate", "--case", json.dumps(case)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command,
        cwd=root,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        return {**case, "failed": done.stderr.strip()[-4000:]}
    return {**case, "gib": gib, **json.loads(done.stdout.splitlines()[-1])}


def run(case: dict[str, Any]) -> dict[str, Any]:
    """The same in this process."""
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from internevo.parallel.world import World
    from internevo.train.build import check_engine, make_engine

    stage = read_stage(case)
    world, rank = case["world"], case["rank"]
    device = torch.device("cuda", rank % 8)
    torch.cuda.set_device(device)
    skip_values()
    if world > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    seen: dict[str, Any] = {"stage": stage.name}
    start, where = time.perf_counter(), "build"
    try:
        check_engine(stage, world, device)
        if stage.parallel.zero.engine == "deepspeed":
            agree_with_the_others()
        engine = make_engine(stage, World(rank, world, device, None, None, None))
        seen |= {"build_peak": peak(), "state": round(torch.cuda.memory_allocated() / GIB, 2)}
        if case["until"] == "step":
            where = "step"
            seen |= two_steps(engine, make_batch(stage, engine.part, case["documents"]))
    except torch.OutOfMemoryError as error:
        seen["out_of_memory"] = f"in {where}: {str(error).split('. ')[0]}; {peak()} GiB were the most before it"
    except Exception:  # the result carries it, whatever it is
        seen["failed"] = f"in {where}: {traceback.format_exc()[-4000:]}"
    return {**seen, "seconds": round(time.perf_counter() - start, 1)}


def read_stage(case: dict[str, Any]) -> Any:
    """The config's stage, its step cut down to the micro-batches asked for, of every data rank."""
    from internevo.config.load import load_config

    config = load_config(case["config"], case["overrides"], check_data=False)
    stages = {stage.name: stage for stage in config.stages}
    stage = stages[case["stage"] or config.stages[0].name]
    parallel, train = stage.parallel, stage.train
    data = case["world"] // (parallel.tensor * parallel.pipeline.size * parallel.context.size)
    train.batch_tokens = train.seq_len * train.micro_batch * data * case["micro_batches"]
    train.batch_ramp = []
    return stage


def skip_values() -> None:
    """Let weights keep what lies in memory: drawing the numbers of 70 billion takes many minutes."""
    import torch

    from internevo.parallel import build_rank_model

    build_rank_model.initial_values = lambda name, shape, *_: torch.empty(shape)


def answer_the_neighbours() -> None:
    """Pipelines of torch 2.13 ask the neighbouring ranks whether shapes are known beforehand, which they are here."""
    from torch.distributed.pipelining import schedules, stage

    if hasattr(stage, "InferenceMode"):

        def known(self: Any, stages: Sequence[Any], *_: Any) -> None:
            for one in stages:
                one._inference_mode = stage.InferenceMode.STATIC

        schedules._PipelineSchedule._warmup_p2p = known  # type: ignore[attr-defined]


def agree_with_the_others() -> None:
    """DeepSpeed compares the order of its weights over the ranks, which here have none."""
    from deepspeed.runtime.zero import parameter_offload, partition_parameters, partitioned_param_coordinator, stage3

    for module in (parameter_offload, partition_parameters, partitioned_param_coordinator, stage3):
        if hasattr(module, "assert_ints_same_as_other_ranks"):
            module.assert_ints_same_as_other_ranks = lambda *_: None


def make_batch(stage: Any, part: Any, documents: str) -> Any:
    """A batch of random tokens, as this rank's loader would give it."""
    import numpy as np

    from internevo.data.batch import Batch

    seq_len = stage.train.seq_len
    count = stage.train.batch_tokens // seq_len
    mine = count // part.parts
    rng = np.random.default_rng(0)
    lengths = [row_lengths(seq_len, documents, rng) for _ in range(mine)]
    tokens = rng.integers(3, min(500, stage.model.vocab), (mine, seq_len))
    positions = np.stack([np.concatenate([np.arange(n) for n in row]) for row in lengths])
    rows = slice(part.number * mine, (part.number + 1) * mine)
    everyones = tuple(tuple(lengths[number % mine]) for number in range(count))
    return Batch(tokens, tokens.copy(), positions, everyones, (seq_len,) * count, ("s",) * count, count * seq_len, rows)


def row_lengths(seq_len: int, documents: str, rng: Any) -> list[int]:
    """The lengths of a row's documents: log-normal around 700 tokens, or one."""
    import numpy as np

    lengths: list[int] = []
    while (left := seq_len - sum(lengths)) > 0:
        drawn = int(np.clip(rng.lognormal(np.log(min(700, seq_len / 8)), 1.0), 8, left)) if left > 8 else left
        lengths.append(min(left, drawn) if documents == "many" else left)
    return lengths


def two_steps(engine: Any, batch: Any) -> dict[str, Any]:
    """Train two steps; what the second one took and where it waited."""
    import torch

    answer_the_neighbours()
    train_one(engine, batch)
    torch.cuda.reset_peak_memory_stats()
    trace = Trace()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        train_one(engine, batch)
        torch.cuda.set_sync_debug_mode("default")
    return {
        "peak": peak(),
        "reserved": round(torch.cuda.max_memory_reserved() / GIB, 2),
        "waits_at": sorted({f"{one.filename}:{one.lineno}" for one in caught if _WAITED in str(one.message)}),
        **trace.end(),
    }


def train_one(engine: Any, batch: Any) -> None:
    """A step, without the one wait for its loss at the end."""
    staged = engine.stage_batch(batch)
    engine.update(engine.forward_backward(staged), 1e-4)


class Trace:
    """What the driver is asked for from now on."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL(None)
        self._driver.nogpu_trace(1)

    def end(self) -> dict[str, Any]:
        """Kernel launches, where the host waited, and contexts made on other GPUs."""
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as file:
            self._driver.nogpu_dump(file.name.encode())
            lines = file.read().splitlines()
        self._driver.nogpu_trace(0)
        waits = Counter(" ".join(line.split()[:3]) for line in lines if is_wait(line))
        launches = sum(line[:2] in ("K ", "T ", "B ") for line in lines)
        return {
            "launches": launches,
            "waits": dict(waits),
            "contexts": sorted({line for line in lines if line.startswith("CONTEXT")}),
        }


def is_wait(line: str) -> bool:
    """Whether the host waits there: for a stream, an event or the device, or in a copy from or to pageable memory."""
    if line.startswith("SYNC"):
        return True
    kind = line.split()
    return kind[0] == "COPY" and (kind[1] == "SYNC" or (kind[1] == "async" and "H" in kind[2]))


def peak() -> float:
    """The most that was allocated, in GiB."""
    import torch

    return round(torch.cuda.max_memory_allocated() / GIB, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?")
    parser.add_argument("overrides", nargs="*", help="key=value, as for `internevo train`")
    parser.add_argument("--stage", help="its name; the first if not said")
    parser.add_argument("--world", type=int, default=1, help="ranks")
    parser.add_argument("--rank", type=int, default=0, help="which of them is run")
    parser.add_argument("--gib", type=float, default=139.8, help="memory of the GPU")
    parser.add_argument("--micro-batches", type=int, default=2)
    parser.add_argument("--documents", choices=("one", "many"), default="one", help="in each row")
    parser.add_argument("--until", choices=MODES, default="step")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    if args.case:
        result = run(json.loads(args.case))
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
        with suppress(Exception):
            import torch.distributed as dist

            if dist.is_initialized():
                dist.destroy_process_group()
        return
    if args.config is None:
        parser.error("name a config")
    given = {name: getattr(args, name) for name in ("world", "rank", "gib", "micro_batches", "documents", "until")}
    print(json.dumps(simulate(args.config, args.stage, args.overrides, **given), indent=1))


if __name__ == "__main__":
    main()
