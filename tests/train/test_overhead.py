"""What a step launches and waits for, beside a Llama written in bare torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from internevo.config.presets import model_preset
from internevo.config.schema import OptimizerConfig, StageConfig, TrainConfig
from internevo.data.batch import Batch
from internevo.parallel.world import World
from internevo.train.build import make_engine
from internevo.train.engine import Engine
from internevo.train.step import train_step
from tests.model.counting import Operators
from tests.train.test_step import CPU, random_batch
from tools.bare_llama import Shape, Trainer


def build(precision: str, state: str = "fp32", name: str = "adamw", micro_batch: int = 4) -> Engine:
    train = TrainConfig(precision=precision, seq_len=32, batch_tokens=128, micro_batch=micro_batch, steps=100)
    optimizer = OptimizerConfig(state=state, name=name)
    stage = StageConfig(model=model_preset("tiny"), train=train, optimizer=optimizer)
    return make_engine(stage, World.alone(CPU))


def bare(precision: str) -> Trainer:
    c = model_preset("tiny")
    shape = Shape(c.hidden, c.layers, c.attention.heads, c.attention.kv_heads, c.feed_forward.width, c.vocab)
    return Trainer(shape, CPU, precision == "bf16", compiled=False, recompute=False, chunks=1)


def micros_of(batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.from_numpy(batch.tokens), torch.from_numpy(batch.labels))]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_operators_beside_bare_torch(precision: str) -> None:
    """A step of whole rows launches at most 1.1 times the operators of the model in bare torch."""
    batch, engine, trainer = random_batch(0), build(precision), bare(precision)
    counts = []
    for run in (lambda: train_step(engine, engine.stage_batch(batch), 1e-3), lambda: trainer.step(micros_of(batch))):
        run()  # the optimizer's state is there
        with Operators() as operators:
            run()
        counts.append(operators)
    ours, theirs = counts
    assert theirs.total > 200
    assert ours.total <= 1.1 * theirs.total, (ours.counts - theirs.counts, theirs.counts - ours.counts)


class Waits(TorchDispatchMode):
    """Notes every operator that waits for the device: a number read, or a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        waiting = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")
        if any(str(function).startswith(f"aten.{name}.") for name in waiting):
            self.seen.append(str(function))
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize(
    ("precision", "state", "name"),
    [("fp32", "fp32", "adamw"), ("bf16", "fp32", "adamw"), ("bf16", "fp32", "muon"), ("bf16", "split", "adamw")],
)
def test_a_step_waits_for_nothing(precision: str, state: str, name: str) -> None:
    """Forward, backward, clipping and update never read a number back from the device."""
    engine = build(precision, state, name, micro_batch=2)
    for number in range(2):
        staged = engine.stage_batch(random_batch(number))
        with Waits() as waits:
            engine.update(engine.forward_backward(staged), 1e-3)
        assert waits.seen == []


def test_the_watch_sees_waiting() -> None:
    with Waits() as waits:
        float(torch.ones(3).sum())
    assert waits.seen == ["aten._local_scalar_dense.default"]


def test_bare_torch_trains_the_same() -> None:
    """The model in bare torch is ours: the same loss with the same weights."""
    batch, engine, trainer = random_batch(0), build("fp32"), bare("fp32")
    names = {"norm1": "attention_norm", "norm2": "feed_forward_norm"}
    names |= {one: f"attention.{one}" for one in ("wq", "wk", "wv", "wo")}
    names |= {one: f"feed_forward.{one}" for one in ("gate", "up", "down")}
    ours = engine.parameters
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            parts = [names.get(part, part) for part in name.split(".")]
            parameter.copy_(ours[".".join(parts)])
    losses = [train_step(engine, engine.stage_batch(batch), 3e-4).loss for _ in range(3)]
    assert losses == pytest.approx([trainer.step(micros_of(batch)) for _ in range(3)], rel=1e-5)
    assert np.diff(losses).max() < 0
