"""One rank of a layout on one GPU, in a group that sends nothing: what is launched and compiled, not what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._inductor import config
from torch._inductor.fx_passes import post_grad
from torch.distributed._symmetric_memory import _test_mode
from torch.testing._internal.distributed.fake_pg import FakeStore

from internevo.config.presets import model_preset
from internevo.config.schema import OptimizerConfig, StageConfig, TrainConfig
from internevo.parallel.asynchronous import FoldReshapes
from internevo.parallel.world import World
from internevo.train.build import make_engine
from internevo.train.engine import Engine
from tests.gpu.test_training import WIDE, build
from tests.gpu.waits import no_waits
from tests.train.test_step import random_batch


@contextmanager
def engine_of(
    world: int, gpu: torch.device, parallel: dict[str, Any], name: str = "adamw", **changes: Any
) -> Iterator[Engine]:
    """Rank 0 of `world` ranks; `parallel` are settings by their dotted names."""
    train = TrainConfig(precision="bf16", seq_len=64, batch_tokens=64 * 4 * world, steps=100, **changes)
    stage = StageConfig(model=model_preset("tiny", **WIDE), train=train, optimizer=OptimizerConfig(name=name))
    for key, value in parallel.items():
        *path, last = key.split(".")
        owner: Any = stage.parallel
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, last, value)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield make_engine(stage, World(0, world, torch.device("cuda", 0), None, None, None))
    finally:
        dist.destroy_process_group()


def step(engine: Engine, batch: Any, lr: float = 1e-3) -> None:
    engine.update(engine.forward_backward(engine.stage_batch(batch)), lr)


def test_async_tensor_parallelism_is_its_engines_alone(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine built afterwards is compiled as if there had been none before it."""
    used: list[str] = []
    fold, overlap = FoldReshapes.__call__, post_grad.micro_pipeline_tp_pass
    monkeypatch.setattr(FoldReshapes, "__call__", lambda *given: (used.append("fold"), fold(*given)))
    monkeypatch.setattr(post_grad, "micro_pipeline_tp_pass", lambda *given: (used.append("overlap"), overlap(*given)))
    before = config._micro_pipeline_tp, config.post_grad_custom_pre_pass
    torch._dynamo.reset()
    with _test_mode(), engine_of(2, gpu, {"tensor": 2, "asynchronous": True}, compile=True) as engine:
        step(engine, random_batch(0, seq=64))
        with no_waits():
            step(engine, random_batch(1, seq=64))
    assert sorted(used) == ["fold", "fold", "overlap", "overlap"]  # forward and backward, one for all blocks
    assert (config._micro_pipeline_tp, config.post_grad_custom_pre_pass) == before
    used.clear()
    other = build(gpu, compile=True)
    step(other, random_batch(0, seq=64))
    assert used == []
