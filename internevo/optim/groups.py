"""Which parameters decay, and what share of the learning rate each has: by their roles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from internevo.config.schema import ModelConfig, OptimizerConfig
from internevo.model.roles import Kind, Role

Rate = Callable[[Role], float]
"""The share of the learning rate that parameters of a role have."""


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], roles: Mapping[str, Role], config: OptimizerConfig, rate: Rate
) -> list[dict[str, Any]]:
    """The groups of a torch optimizer: parameters with the same decay and share, `rate`, of the learning rate.

    Decay is decoupled; what it takes from a weight in a step does not depend on the share.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = config.weight_decay if decays(roles[name], config) else 0.0
        groups.setdefault((decay, rate(roles[name])), []).append(parameter)
    return [
        {"params": chosen, "weight_decay": decay / share, "rate": share}
        for (decay, share), chosen in sorted(groups.items(), key=lambda one: one[0], reverse=True)
    ]


def decays(role: Role, config: OptimizerConfig) -> bool:
    """Whether weight decay reaches the parameters of a role."""
    if role.kind in (Kind.embedding, Kind.head):
        return config.decay_embeddings and config.weight_decay != 0.0
    return role.kind is Kind.matrix and config.weight_decay != 0.0


def width_rate(model: ModelConfig) -> Rate:
    """The shares of the learning rate under `model.width_base` (muP's table 3 for Adam, arXiv 2203.03466).

    Embedding, norms, biases and matrices with a narrow input: all of it. Others: in inverse proportion to the width.
    """
    ratio = model.width_base / model.hidden if model.width_base else 1.0
    return lambda role: ratio if role.kind in (Kind.matrix, Kind.head) and role.wide else 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("rate", 1.0)
