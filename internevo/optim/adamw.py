"""AdamW (arXiv 1711.05101), torch's own in one kernel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from internevo.config.schema import OptimizerConfig
from internevo.model.roles import Role
from internevo.optim.groups import Rate, parameter_groups


def adamw(
    parameters: Mapping[str, nn.Parameter],
    roles: Mapping[str, Role],
    config: OptimizerConfig,
    rate: Rate = lambda role: 1.0,
) -> torch.optim.AdamW:
    """The optimizer without state yet: decoupled decay on matrices, none on norms and biases.

    Whether the embedding and the output head decay is `optimizer.decay_embeddings`.
    """
    beta1, beta2 = config.betas
    groups = parameter_groups(parameters, roles, config, rate)
    return torch.optim.AdamW(groups, betas=(beta1, beta2), eps=config.eps, fused=True)


def begin_state(optimizer: torch.optim.AdamW) -> None:
    """Make the state that torch makes at the first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
