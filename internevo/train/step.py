"""One optimizer step: forward and backward, clip, update."""

from __future__ import annotations

from dataclasses import dataclass

from internevo.data.batch import Batch
from internevo.train.engine import Engine


@dataclass(frozen=True)
class StepResult:
    """What one step did."""

    loss: float
    """Mean loss over the real labels of the global batch, in nats."""
    grad_norm: float
    """Global gradient norm before clipping."""
    skipped: bool
    """Whether the update was left out because loss or gradient was not finite."""


def train_step(engine: Engine, batch: Batch, lr: float) -> StepResult:
    """Train on one global batch with this learning rate.

    The gradient is that of the mean loss over all real labels of the batch, however it is cut into micro-batches
    and over ranks. A step whose loss or gradient is not finite changes neither weights nor optimizer state.
    """
    loss = engine.forward_backward(batch)
    grad_norm, moved = engine.update(loss, lr)
    return StepResult(loss.item(), grad_norm.item(), skipped=not moved)
