"""The optimizers of a model: AdamW for all of it, or Muon for the matrices of the blocks and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from internevo.config.schema import ModelConfig, OptimizerConfig
from internevo.model.roles import Kind, Role
from internevo.optim.muon import ALONE, Muon, OnWhole

Rate = Callable[[Role], float]
"""The share of the learning rate that parameters of a role have."""


class Optimizers:
    """One or two torch optimizers over named parameters, moved together without waiting for the device."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        roles: Mapping[str, Role],
        config: OptimizerConfig,
        dtype: torch.dtype = torch.float32,
        on_whole: OnWhole = ALONE,
        rate: Rate = lambda role: 1.0,
    ):
        """`parameters` may be parts of whole ones, `on_whole` then reaches those. `dtype` is what Muon computes in.

        State is made at once, not at the first step, so that a checkpoint can be loaded into it.
        """
        self.parameters = dict(parameters)
        inner = {name for name in parameters if config.name == "muon" and roles[name].kind is Kind.matrix}
        outer = {name: p for name, p in parameters.items() if name not in inner}
        self.all: list[torch.optim.Optimizer] = []
        if inner:
            self.all.append(Muon({name: parameters[name] for name in sorted(inner)}, config, dtype, on_whole))
        if outer:
            self.all.append(adamw(outer, roles, config, rate))
            for parameter in outer.values():
                self.all[-1].state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    def step(self, lr: float, scale: Tensor, finite: Tensor) -> None:
        """Move the parameters by their gradients divided by `scale`; change nothing at all unless `finite`.

        Both are scalars on the device, which nobody waits for.
        """
        for optimizer in self.all:
            set_learning_rate(optimizer, lr)
            # the two that torch's fused optimizers take from a gradient scaler
            optimizer.grad_scale, optimizer.found_inf = scale, 1.0 - finite.float()  # type: ignore[attr-defined]
            optimizer.step()

    def state(self, name: str) -> dict[str, Tensor]:
        """The state of one parameter, by kind: the live tensors, not copies."""
        parameter = self.parameters[name]
        return next(one.state[parameter] for one in self.all if parameter in one.state)


def adamw(
    parameters: Mapping[str, nn.Parameter],
    roles: Mapping[str, Role],
    config: OptimizerConfig,
    rate: Rate = lambda role: 1.0,
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) without state yet: decoupled decay on matrices, none on norms and biases.

    Whether the embedding and the output head decay is `optimizer.decay_embeddings`. `rate` is a parameter's share of
    the learning rate; what decay takes from a weight in a step does not depend on it.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = config.weight_decay if decays(roles[name], config) else 0.0
        groups.setdefault((decay, rate(roles[name])), []).append(parameter)
    beta1, beta2 = config.betas
    return torch.optim.AdamW(
        [
            {"params": chosen, "weight_decay": decay / share, "rate": share}
            for (decay, share), chosen in sorted(groups.items(), key=lambda one: one[0], reverse=True)
        ],
        betas=(beta1, beta2),
        eps=config.eps,
        fused=True,
    )


def width_rate(model: ModelConfig) -> Rate:
    """The shares of the learning rate under `model.width_base` (muP's table 3 for Adam, arXiv 2203.03466).

    Embedding, norms and biases: all of it. Matrices whose input is as wide as the model: in inverse proportion.
    """
    ratio = model.width_base / model.hidden if model.width_base else 1.0
    return lambda role: ratio if role.kind in (Kind.matrix, Kind.head) else 1.0


def decays(role: Role, config: OptimizerConfig) -> bool:
    """Whether weight decay reaches the parameters of a role."""
    if role.kind in (Kind.embedding, Kind.head):
        return config.decay_embeddings and config.weight_decay != 0.0
    return role.kind is Kind.matrix and config.weight_decay != 0.0


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("rate", 1.0)


def clip_scale(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of this global norm are to be divided by, so that it is at most `max_norm`; 0 clips nothing."""
    return (norm / max_norm).clamp(min=1.0) if max_norm > 0 else torch.ones_like(norm)
