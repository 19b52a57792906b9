"""One optimizer step: forward and backward, clip, update."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.profiler import record_function

from internevo.monitor.profile import UPDATE
from internevo.train.engine import Engine
from internevo.train.micro_batch import Staged


@dataclass(frozen=True)
class StepResult:
    """What one step did."""

    loss: float
    """Mean loss over the real labels of the global batch, in nats."""
    grad_norm: float
    """Global gradient norm before clipping."""
    skipped: bool
    """Whether the update was left out because loss or gradient was not finite."""
    recorded: dict[str, float]
    """What the model's parts and the engine recorded, by name."""


def train_step(engine: Engine, staged: Staged, lr: float) -> StepResult:
    """Train on one global batch with this learning rate.

    The gradient is that of the mean loss over all real labels of the batch, however it is cut into micro-batches
    and over ranks. A step whose loss or gradient is not finite changes neither weights nor optimizer state. The host
    waits for the device once, at the end.
    """
    mean_loss = engine.forward_backward(staged)
    with record_function(UPDATE):
        norm, moved = engine.update(mean_loss, lr)
    recorded = engine.recorder.gather(engine, mean_loss.device)
    numbers = torch.cat([torch.stack([mean_loss, norm.to(mean_loss), moved.to(mean_loss)]), recorded.to(mean_loss)])
    loss, grad_norm, updated, *others = numbers.tolist()
    return StepResult(loss, grad_norm, skipped=not updated, recorded=engine.recorder.read(others))
