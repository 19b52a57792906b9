"""A model whose parts measure themselves and have losses of their own, in every way that there is; and its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from internevo.model import transformer
from internevo.model.metrics import Combine, Seen, add_loss, record
from internevo.model.roles import Kind, Role, declare
from internevo.parallel.world import World
from internevo.train.step import train_step
from tests.parallel.jobs import LR, Trained, engine_of, keep_gradients, next_batches, stage_of, strip, weights_of


class Measured(transformer.FeedForward):
    """SwiGLU with a gate for each token, which has a loss; and one on the inner features."""

    share = 1.0

    def __init__(self, config: Any):
        super().__init__(config)
        self.router = declare(nn.Linear(config.hidden, 4, bias=False), weight=Role(Kind.matrix, partial=True))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x).float()
        inner = F.silu(self.gate(x)) * self.up(x)
        add_loss(self, "router z", self.share * logits.logsumexp(-1).square().sum())
        add_loss(self, "inner", self.share * 3 * inner.float().square().sum(), seen=Seen.own)
        record(self, "logits", logits.mean())
        record(self, "most", logits.max(), Combine.max)
        record(self, "least", logits.min(), Combine.min)
        record(self, "total", logits.square().sum(), Combine.sum)
        record(self, "inner total", inner.float().square().sum(), Combine.sum, seen=Seen.own)
        record(self, "soft", logits.detach().flatten().logsumexp(0), torch.logaddexp)
        positive = (logits > 0).sum()
        record(self, "positive", logits.clamp(min=0).sum() / positive.clamp(min=1), weight=positive)
        return self.down(inner * logits.softmax(-1).amax(-1, keepdim=True).to(inner))


class MeasuredBlock(transformer.Block):
    """A loss on the residual stream."""

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        x = super().forward(x, *others)
        squares = x.float().square()
        record(self, "stream", squares.mean(), seen=Seen.residual)
        add_loss(self, "residual", Measured.share * 3 * squares.mean(-1).sum(), seen=Seen.residual)
        return x


class Messages(TorchDispatchMode):
    """Counts the collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.count += function.namespace == "c10d"
        return function(*arguments, **(named or {}))


def train_measured(
    world: World, changes: dict[str, Any], store: Path, steps: int, share: float = 1.0, measure: bool = True
) -> tuple[Trained, list[dict[str, float]], int]:
    """Train it, or without `measure` the usual model; what was recorded, and the messages of the last step."""
    Measured.share = share
    block, feed_forward = (MeasuredBlock, Measured) if measure else (transformer.Block, transformer.FeedForward)
    result, recorded = Trained(), []
    messages = Messages()
    with (
        patch.object(transformer, "Block", block),
        patch.dict(transformer.FEED_FORWARDS, {"dense": feed_forward}),
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True),
    ):
        engine = engine_of(stage_of(changes), world)
        keep_gradients(engine, result)
        for number, batch in enumerate(next_batches(store, engine, steps)):
            staged = engine.stage_batch(batch)
            if measure:
                record(engine, "rank", float(world.rank), Combine.max, seen=Seen.own)
            if number == steps - 1:
                with messages:
                    done = train_step(engine, staged, LR)
            else:
                done = train_step(engine, staged, LR)
            result.losses.append(done.loss)
            result.norms.append(done.grad_norm)
            recorded.append(done.recorded)
        engine.losses(batch)  # records nothing
        result.weights = weights_of(engine)
    return (result if world.main else strip(result)), recorded, messages.count
