"""Sizes that follow from the configuration."""

from __future__ import annotations

from internevo.config.schema import TrainConfig


def rows_per_step(train: TrainConfig) -> int:
    """Rows of one optimizer step, over all ranks."""
    return train.batch_tokens // train.seq_len


def stage_steps(train: TrainConfig) -> int:
    """Optimizer steps of the stage: `steps`, or as many as `tokens` needs."""
    if train.steps is not None:
        return train.steps
    assert train.tokens is not None
    return -(-train.tokens // (rows_per_step(train) * train.seq_len))
