"""One optimizer step: forward and backward, clip, update."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from internevo.data.batch import Batch
from internevo.train.engine import Engine
from internevo.train.optimizer import set_learning_rate


@dataclass(frozen=True)
class StepResult:
    """What one step did."""

    loss: float
    """Mean loss over the real labels of the global batch, in nats."""
    grad_norm: float
    """Global gradient norm before clipping."""
    skipped: bool
    """Whether the update was left out because loss or gradient was not finite."""


def train_step(engine: Engine, optimizer: torch.optim.Optimizer, batch: Batch, *, clip: float, lr: float) -> StepResult:
    """Train on one global batch.

    The gradient is that of the mean loss over all real labels of the batch, however it is cut into micro-batches
    and over ranks. A step whose loss or gradient is not finite changes neither weights nor optimizer state.
    """
    loss = engine.forward_backward(batch)
    grad_norm = engine.clip_gradients(clip)
    finite = bool(torch.isfinite(loss) & torch.isfinite(grad_norm))
    if finite:
        set_learning_rate(optimizer, lr)
        optimizer.step()
        engine.updated()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss.item(), grad_norm.item(), skipped=not finite)
