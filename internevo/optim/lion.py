"""Lion (arXiv 2302.06675): the sign of an average of gradients. One moment, and steps of the same size for all."""

from __future__ import annotations

from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """A plain torch optimizer: it knows nothing of clipping, of steps that are not finite, or of ranks."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]):
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self._betas = betas
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter by its gradient."""
        beta1, beta2 = self._betas
        for group in self.param_groups:
            for parameter in group["params"]:
                average = self.state[parameter]["exp_avg"]
                direction = average.lerp(parameter.grad, 1 - beta1).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                average.lerp_(parameter.grad, 1 - beta2)
