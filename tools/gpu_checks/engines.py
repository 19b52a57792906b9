"""A few steps of each engine beside the same on the CPU in fp32; host waits, compilations, memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters

from internevo.config.presets import model_preset
from internevo.config.schema import (
    OffloadConfig,
    OptimizerConfig,
    ParallelConfig,
    StageConfig,
    TrainConfig,
    ZeroConfig,
)
from internevo.data.batch import Batch
from internevo.data.loader import evaluation_batches
from internevo.model.attention import KERNELS
from internevo.parallel.layout import make_layout
from internevo.parallel.mesh import Mesh
from internevo.parallel.world import World, start_groups
from internevo.tokens.store import TokenStore
from internevo.tokens.store_writer import TokenStoreWriter
from internevo.train.build import make_engine
from internevo.train.engine import Engine, TorchEngine
from internevo.train.sequential import Sequential
from internevo.train.step import train_step
from tests.gpu.numbers import NOOP

from .device import device
from .parts import Part
from .record import Records
from .work import Absent, Checks, first_line, place

SIZES: dict[str, Any] = {
    "hidden": 512,
    "layers": 2,
    "vocab": 2048,
    "attention": {"heads": 4, "kv_heads": 2},
    "feed_forward": {"width": 1024},
}
"""Heads are as wide as real ones."""
ROWS, SEQ, STEPS = 4, 256, 3
CPU = torch.device("cpu")

Settings = dict[str, Any]
"""Keys of `train`; `state` and `name` are the optimizer's, `zero` the stage of ZeRO, `offload` where its state is."""
PLAIN: dict[str, Settings] = {
    "fp32": {"precision": "fp32"},
    "bf16": {},
    "state split": {"state": "split"},
    "state bf16": {"state": "bf16"},
    "state split, one micro-batch": {"state": "split", "micro_batch": 4},
    "fp32, sdpa": {"precision": "fp32", "attention": "sdpa"},
    "bf16, sdpa": {"attention": "sdpa"},
    "recompute full": {"recompute": "full"},
    "recompute selective": {"recompute": "selective"},
    "muon": {"name": "muon"},
    "muon, fp32": {"name": "muon", "precision": "fp32"},
    "loss plain": {"loss": "plain"},
    "loss torch": {"loss": "torch"},
    "loss liger": {"loss": "liger"},
    "flash": {"attention": "flash"},
}
COMPILED: dict[str, Settings] = {
    "bf16": {},
    "state bf16": {"state": "bf16", "recompute": "selective"},
    "state split": {"state": "split", "recompute": "full"},
    "flex": {"attention": "flex"},
    "fp8 tensorwise": {"fp8": "tensorwise"},
    "fp32": {"precision": "fp32"},
    "muon": {"name": "muon"},
    "fp8 rowwise": {"fp8": "rowwise"},
}
DISTRIBUTED: dict[str, Settings] = {
    "zero 1": {"zero": 1},
    "zero 3": {"zero": 3},
    "zero 2, muon": {"zero": 2, "name": "muon"},
    "zero 3, state in host memory": {"zero": 3, "offload": "cpu"},
    "zero 1, state in host memory": {"zero": 1, "offload": "cpu"},
    "zero 0": {"zero": 0},
    "zero 3, recompute selective": {"zero": 3, "recompute": "selective"},
    "zero 3, compiled": {"zero": 3, "compile": True},
}


def checks(part: Part, small: bool, records: Records) -> Checks:
    """Those of the part; small on a CPU, the first three, and nothing is compiled."""
    if small:  # and for this process only
        SIZES.update(hidden=128, feed_forward={"width": 256}, vocab=512)
    few = small and device().type == "cpu"
    chosen = {"engines": PLAIN, "compiled": COMPILED, "distributed": DISTRIBUTED}[part.name]
    build = build_sharded if part.name == "distributed" else build_alone
    for name, settings in list(chosen.items())[: 3 if few else None]:
        if part.name == "compiled":
            settings = {**settings, "compile": not few}
        yield name, partial(one_engine, build, settings)


def one_engine(build: Callable[[StageConfig], Engine], settings: Settings) -> dict[str, Any]:
    """Losses beside the CPU's, then a step in which the host must not wait, and what was compiled when."""
    lacking(settings)
    torch._dynamo.reset()
    counters.clear()
    expected = losses_on_cpu(settings.get("name", "adamw"))
    cuda = device().type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    engine = build(stage_of(settings))
    losses, graphs = [], []
    for batch in batches()[:STEPS]:
        losses.append(train_step(engine, engine.stage_batch(batch), 1e-3).loss)
        graphs.append(counters["stats"]["unique_graphs"])
    reads_back = settings.get("loss") == "liger" or "offload" in settings
    waits = waiting(engine) if cuda and not reads_back else ""
    graphs.append(counters["stats"]["unique_graphs"])
    error = max(abs(got - want) / want for got, want in zip(losses, expected, strict=True))
    tolerance = 3e-2 if "fp8" in settings else 1e-3 if settings.get("precision") == "fp32" else 1e-2
    faults = []  # what is wrong whatever the numbers are
    if waits:
        faults.append(f"the host waits: {waits}")
    if graphs[-1] != graphs[0]:
        faults.append(f"compiled anew for other documents: {graphs} graphs")
    if counters["graph_break"] and settings.get("attention") != "flash":
        faults.append(f"graph breaks: {dict(counters['graph_break'])}")
    wrong = [*faults] if error <= tolerance else [f"losses {rounded(losses)} for {rounded(expected)}", *faults]
    found = {"losses": losses, "expected": expected, "graphs": graphs, "faults": faults}
    if cuda:
        found["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    engine.close()
    told = "; ".join(wrong) or f"losses are off by {error:.2g}, of {tolerance:g}"
    return {"status": "wrong" if wrong else "right", "told": told, **found}


def lacking(settings: Settings) -> None:
    """Raise Absent for what is not installed or cannot run here."""
    if "fp8" in settings and find_spec("torchao") is None:
        raise Absent("torchao is not installed")
    if "fp8" in settings and device().type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        raise Absent("this GPU has no FP8 units")
    if settings.get("loss") == "liger" and (find_spec("liger_kernel") is None or device().type != "cuda"):
        raise Absent("liger-kernel is not installed, or there is no GPU")
    if settings.get("loss") == "torch" and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        raise Absent(f"torch {torch.__version__} has no linear_cross_entropy")
    kernel = settings.get("attention")
    if kernel and (
        why := KERNELS[kernel].reason(device(), torch.bfloat16, SIZES["hidden"] // SIZES["attention"]["heads"])
    ):
        raise Absent(f"{kernel} cannot run here: {why}")


def stage_of(settings: Settings) -> StageConfig:
    """The stage with some settings changed."""
    given = {"precision": "bf16", "micro_batch": 2, **settings}
    optimizer = OptimizerConfig(name=given.pop("name", "adamw"), state=given.pop("state", "fp32"))
    offload = OffloadConfig(given.pop("offload", "none"))
    parallel = ParallelConfig(zero=ZeroConfig(stage=given.pop("zero", 1), offload=offload))
    train = TrainConfig(seq_len=SEQ, batch_tokens=ROWS * SEQ, steps=100, **given)
    return StageConfig(model=model_preset("tiny", **SIZES), train=train, optimizer=optimizer, parallel=parallel)


def build_alone(stage: StageConfig, where: torch.device | None = None) -> Engine:
    """As a run in one process builds it."""
    return make_engine(stage, World(0, 1, where or device(), None, None, None))


def build_sharded(stage: StageConfig) -> Engine:
    """The engine of many ranks, on one."""
    if not dist.is_initialized():
        if NOOP:  # the driver that does nothing has no NCCL
            from torch.testing._internal.distributed.fake_pg import FakeStore

            dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
        else:
            for library in ("NCCL", "GLOO"):
                os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
            folder = tempfile.mkdtemp()
            start_groups(device(), init_method=f"file://{folder}/store", rank=0, world_size=1)
    return TorchEngine(stage, Mesh(make_layout(stage, 1), device(), groups=True), Sequential)


@cache
def losses_on_cpu(optimizer: str) -> list[float]:
    """The losses of the first steps, eager, in fp32."""
    engine = build_alone(stage_of({"precision": "fp32", "name": optimizer}), CPU)
    return [train_step(engine, engine.stage_batch(batch), 1e-3).loss for batch in batches()[:STEPS]]


def waiting(engine: Engine) -> str:
    """Where the host waits for the GPU within a step; nothing if it does not."""
    staged = [engine.stage_batch(batch) for batch in batches()[STEPS:]]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for one in staged:
            engine.update(engine.forward_backward(one), 1e-3)
    except RuntimeError as error:
        return f"{first_line(error)} [{place(error)}]"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


@cache
def batches() -> list[Batch]:
    """Steps of other documents each: from one a row to a hundred."""
    rng, found = np.random.default_rng(0), []
    for longest in (60, 2 * SEQ, 5, 30, SEQ // 2):
        with tempfile.TemporaryDirectory() as folder:
            path, left = Path(folder) / "documents", 2 * ROWS * SEQ
            with TokenStoreWriter(path, np.uint16) as writer:
                while left > 0:
                    length = int(rng.integers(longest // 2 + 1, longest + 1))
                    writer.append(rng.integers(1, SIZES["vocab"], length))
                    left -= length
            batch = next(evaluation_batches("documents", TokenStore(path), SEQ, ROWS, 10**9))
        found.append(replace(batch))
    return found


def rounded(losses: list[float]) -> str:
    """To read."""
    return ", ".join(f"{loss:.4f}" for loss in losses)
