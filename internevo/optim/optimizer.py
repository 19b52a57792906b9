"""The optimizers of a model: AdamW for all of it, or Muon for the matrices of the blocks and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

import torch
from torch import Tensor, nn

from internevo.config.schema import ModelConfig, OptimizerConfig
from internevo.optim.muon import ALONE, Muon, OnWhole

Rate = Callable[[str], float]
"""A parameter's share of the learning rate, by its name."""


class Optimizers:
    """One or two torch optimizers over named parameters, moved together without waiting for the device."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: OptimizerConfig,
        dtype: torch.dtype = torch.float32,
        on_whole: OnWhole = ALONE,
        rate: Rate = lambda name: 1.0,
    ):
        """`parameters` may be parts of whole ones, `on_whole` then reaches those. `dtype` is what Muon computes in.

        State is made at once, not at the first step, so that a checkpoint can be loaded into it.
        """
        self.parameters = dict(parameters)
        inner = {name for name, p in parameters.items() if config.name == "muon" and is_inner_matrix(name, p)}
        outer = {name: p for name, p in parameters.items() if name not in inner}
        self.all: list[torch.optim.Optimizer] = []
        if inner:
            self.all.append(Muon({name: parameters[name] for name in sorted(inner)}, config, dtype, on_whole))
        if outer:
            matrices = {name for name, parameter in outer.items() if parameter.ndim > 1}
            self.all.append(adamw(outer, matrices, config, rate))
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


def is_inner_matrix(name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix of a block: Muon is for these, not for embedding and head."""
    return parameter.ndim == 2 and name.startswith("blocks.")


def adamw(
    parameters: Mapping[str, nn.Parameter], matrices: Set[str], config: OptimizerConfig, rate: Rate = lambda name: 1.0
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) without state yet: decoupled decay on the `matrices` named, none on the rest.

    Whether the embedding and the output head decay is `optimizer.decay_embeddings`. `rate` is a parameter's share of
    the learning rate; what decay takes from a weight in a step does not depend on it.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = config.weight_decay if decays(name, name in matrices, config) else 0.0
        groups.setdefault((decay, rate(name)), []).append(parameter)
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
    """Each parameter's share of the learning rate under `model.width_base` (muP's table 3 for Adam, arXiv 2203.03466).

    Embedding, norms and biases: all of it. Matrices whose input is as wide as the model: in inverse proportion.
    """
    ratio = model.width_base / model.hidden if model.width_base else 1.0

    def rate(name: str) -> float:
        vector = "norm" in name or name.endswith("bias")
        return 1.0 if vector or name == "embed.weight" else ratio

    return rate


def decays(name: str, matrix: bool, config: OptimizerConfig) -> bool:
    """Whether weight decay reaches the parameter of this name."""
    free = not config.decay_embeddings and name.startswith(("embed.", "head."))
    return matrix and not free and config.weight_decay != 0.0


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("rate", 1.0)


def clip_scale(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of this global norm are to be divided by, so that it is at most `max_norm`; 0 clips nothing."""
    return (norm / max_norm).clamp(min=1.0) if max_norm > 0 else torch.ones_like(norm)
