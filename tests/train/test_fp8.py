"""FP8 products, emulated on the CPU: what is converted, and that training follows bf16."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from internevo.config.presets import model_preset
from internevo.config.schema import OptimizerConfig, StageConfig, TrainConfig
from internevo.model.initial import initial_model
from internevo.parallel.world import World
from internevo.train.build import make_engine
from internevo.train.engine import TorchEngine
from internevo.train.step import train_step
from tests.train.test_step import CPU, random_batch

pytest.importorskip("torchao", reason="torchao is not installed: pip install 'internevo[fp8]'")


def build(fp8: str, state: str = "fp32", **changes) -> TorchEngine:
    train = TrainConfig(precision="bf16", seq_len=32, batch_tokens=128, fp8=fp8, steps=100, **changes)
    stage = StageConfig(model=model_preset("tiny"), train=train, optimizer=OptimizerConfig(state=state))
    return make_engine(stage, World.alone(CPU), initial_model(stage.model, CPU, 0))


@pytest.mark.parametrize("scaling", ["tensorwise", "rowwise"])
def test_what_is_converted(scaling: str) -> None:
    model = build(scaling).runner.transformers[0]
    converted = {name for name, module in model.named_modules() if type(module).__name__ == "Float8Linear"}
    per_block = ("attention.wq", "attention.wo", "feed_forward.gate", "feed_forward.up", "feed_forward.down")
    assert converted == {f"blocks.{n}.{name}" for n in range(2) for name in per_block}
    assert type(model.head) is nn.Linear


@pytest.mark.parametrize(("scaling", "state"), [("tensorwise", "fp32"), ("rowwise", "fp32"), ("rowwise", "split")])
def test_it_trains_as_bf16(scaling: str, state: str) -> None:
    losses = {}
    for fp8 in ("none", scaling):
        engine = build(fp8, state)
        losses[fp8] = [train_step(engine, engine.stage_batch(random_batch(0)), 3e-3).loss for _ in range(10)]
    assert losses[scaling] != losses["none"]
    assert losses[scaling] == pytest.approx(losses["none"], rel=0.03)
    assert losses[scaling][-1] < 0.9 * losses[scaling][0]


def test_a_product_is_off_by_what_fp8_rounds() -> None:
    """e4m3 has three bits of mantissa: a product is off by a few hundredths, not more, and not by nothing."""
    plain, rounded = (build(fp8).runner.transformers[0].blocks[0].feed_forward for fp8 in ("none", "rowwise"))
    x = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    error = (plain(x) - rounded(x)).norm() / plain(x).norm()
    assert 0.01 < error < 0.1


@pytest.mark.heavy
def test_compiled_without_a_break() -> None:
    torch._dynamo.reset()
    counters.clear()
    losses = []
    for compiled in (True, False):
        engine = build("rowwise", compile=compiled)
        losses.append(train_step(engine, engine.stage_batch(random_batch(0)), 1e-3).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert not counters["graph_break"]
