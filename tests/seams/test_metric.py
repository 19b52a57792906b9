"""A number that a part of the model measures, combined in a way of its own, as somebody outside would write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from internevo.model.metrics import Combine, record
from internevo.model.transformer import FeedForward
from internevo.parallel.world import World
from internevo.train.step import train_step
from tests.parallel.jobs import ALONE, LR, engine_of, next_batches, stage_of
from tests.seams.compare import LAYOUT


def longer(one: Tensor, other: Tensor) -> Tensor:
    """The value that is further from zero: of two values, elementwise, in whatever order."""
    return torch.where(one.abs() >= other.abs(), one, other)


class Watched(FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        out = self.gate(x)
        flat = x.flatten()
        record(self, "furthest", flat[flat.abs().argmax()], longer)
        record(self, "inputs", x.float().mean())
        record(self, "places", x.shape[0] * x.shape[1], Combine.sum)
        return self.down(torch.nn.functional.silu(out) * self.up(x))


def recorded(world: World, changes: dict[str, Any], store: Path) -> list[dict[str, float]]:
    kind = {"feed_forward": {"kind": "tests.seams.test_metric:Watched"}}
    engine = engine_of(stage_of({**changes, **kind}), world)
    batches = next_batches(store, engine, 2)
    return [train_step(engine, engine.stage_batch(batch), LR).recorded for batch in batches]


def test_every_layout_reports_the_same(store: Path, ranks: Any) -> None:
    torch.set_num_threads(1)
    alone = recorded(ALONE, {"micro_batch": 8}, store)
    assert [one["places"] for one in alone] == [4 * 8 * 64] * 2  # of every layer
    for changes in (LAYOUT, {**LAYOUT, "sequence": False}):
        for found in ranks(4).run(recorded, changes, store):
            for ours, theirs in zip(found, alone, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
